// How the runner finds a kernel by its name and hands it arguments whose types it can check. The build ends each
// kernel's source with the table.
#pragma once

#include <stdint.h>
#include <string.h>

#include <type_traits>
#include <utility>

namespace emulator {

// kAddresses: how a pointer to pointers arrives; no parameter is of this kind.
enum class Kind : int64_t { kPointer, kInteger, kFloat, kTensorMap, kAddresses };

struct Argument {
  Kind kind;
  union {
    void* pointer;
    int64_t integer;
    float number;
  };
};

struct Kernel {
  const char* name;
  unsigned max_threads;
  int num_parameters;
  const Kind* kinds;
  void (*call)(const void* arguments);
};

template <class T>
constexpr Kind kind_of() {
  if constexpr (std::is_pointer_v<T>) return Kind::kPointer;
  if constexpr (std::is_same_v<T, long long>) return Kind::kInteger;
  if constexpr (std::is_same_v<T, float>) return Kind::kFloat;
  if constexpr (std::is_class_v<T>) return Kind::kTensorMap;
  static_assert(std::is_pointer_v<T> || std::is_same_v<T, long long> || std::is_same_v<T, float> || std::is_class_v<T>,
                "kernels take pointers, int64, float and TensorMap");
}

template <class T>
T take(const Argument& argument) {
  if constexpr (kind_of<T>() == Kind::kPointer) {
    return static_cast<T>(argument.pointer);
  } else if constexpr (kind_of<T>() == Kind::kInteger) {
    return argument.integer;
  } else if constexpr (kind_of<T>() == Kind::kFloat) {
    return argument.number;
  } else {
    T value;
    memcpy(&value, argument.pointer, sizeof(value));
    return value;
  }
}

template <auto kernel, class Function>
struct Signature;

template <auto kernel, class... Parameters>
struct Signature<kernel, void (*)(Parameters...)> {
  static constexpr Kind kinds[sizeof...(Parameters) + 1] = {kind_of<Parameters>()...};

  template <size_t... i>
  static void call(const Argument* arguments, std::index_sequence<i...>) {
    kernel(take<Parameters>(arguments[i])...);
  }
  static void call(const void* arguments) {
    call(static_cast<const Argument*>(arguments), std::index_sequence_for<Parameters...>());
  }
  static constexpr Kernel entry(const char* name, unsigned max_threads) {
    return {name, max_threads, int(sizeof...(Parameters)), kinds, call};
  }
};

template <auto kernel>
constexpr Kernel kernel_entry(const char* name, unsigned max_threads, unsigned = 0) {
  return Signature<kernel, decltype(kernel)>::entry(name, max_threads);
}

}  // namespace emulator

// Ends with an entry without a name.
extern "C" const emulator::Kernel emulator_kernels[];
