// Runs one launch: reads it from standard input, as machine.py writes it, and writes the buffers back to standard
// output. Every buffer is an allocation of its own, of exactly its size, so that AddressSanitizer guards its ends.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "grid.h"
#include "kernel_table.h"
#include "race.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

// Wide redzones: a store far past a buffer's end shall not land in the next one. Kernels free nothing, so a quarantine
// would only cost.
extern "C" const char* __asan_default_options() {
  return "detect_leaks=0:quarantine_size_mb=0:thread_local_quarantine_size_kb=0:print_legend=0:redzone=2048:max_"
         "redzone=2048:detect_stack_use_after_return=0:abort_on_error=0";
}
extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1"; }

namespace {

constexpr size_t kAlignment = 256;

struct Buffer {
  size_t bytes;
  // As on the Python side modulo kAlignment: launchers have looked at it.
  char* data;
  std::vector<char> original;
};

[[noreturn]] void die(const std::string& message) {
  fprintf(stderr, "emulator: %s\n", message.c_str());
  _exit(3);
}

void read_exactly(void* target, size_t bytes) {
  if (bytes && fread(target, 1, bytes, stdin) != bytes) die("the launch is cut off");
}

int64_t read_int() {
  int64_t value;
  read_exactly(&value, sizeof(value));
  return value;
}

size_t read_count() { return size_t(read_int()); }

std::string read_string() {
  std::string text(read_count(), ' ');
  read_exactly(text.data(), text.size());
  return text;
}

uint3 read_size() {
  unsigned x = unsigned(read_int()), y = unsigned(read_int()), z = unsigned(read_int());
  return {x, y, z};
}

Buffer read_buffer() {
  size_t misalignment = read_count(), bytes = read_count();
  void* memory = emulator::allocate_watched(misalignment + bytes, kAlignment);
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(memory, misalignment);
#endif
  Buffer buffer = {bytes, static_cast<char*>(memory) + misalignment, std::vector<char>(bytes)};
  read_exactly(buffer.original.data(), bytes);
  return buffer;
}

emulator::Argument read_argument(const std::vector<Buffer>& buffers) {
  emulator::Argument argument;
  argument.kind = emulator::Kind(read_int());
  switch (argument.kind) {
    case emulator::Kind::kPointer: {
      int64_t buffer = read_int(), offset = read_int();
      argument.pointer = buffer < 0 ? nullptr : buffers[size_t(buffer)].data + offset;
      break;
    }
    case emulator::Kind::kAddresses: {
      argument.kind = emulator::Kind::kPointer;
      size_t count = read_count();
      char** table = static_cast<char**>(emulator::allocate_watched(count * sizeof(char*), kAlignment));
      for (size_t i = 0; i < count; ++i) {
        int64_t buffer = read_int(), offset = read_int();
        table[i] = buffer < 0 ? nullptr : buffers[size_t(buffer)].data + offset;
      }
      argument.pointer = table;
      break;
    }
    case emulator::Kind::kInteger: argument.integer = read_int(); break;
    case emulator::Kind::kFloat: read_exactly(&argument.number, sizeof(float)); break;
    case emulator::Kind::kTensorMap: {
      // Its first field becomes the tensor's address here.
      int64_t buffer = read_int(), offset = read_int();
      char* map = static_cast<char*>(aligned_alloc(64, 128));
      read_exactly(map, 128);
      char* address = buffers[size_t(buffer)].data + offset;
      memcpy(map, &address, sizeof(address));
      argument.pointer = map;
      break;
    }
  }
  return argument;
}

const emulator::Kernel& kernel_named(const std::string& name) {
  for (const emulator::Kernel* kernel = emulator_kernels; kernel->name; ++kernel)
    if (kernel->name == name) return *kernel;
  die("there is no kernel " + name);
}

void check(const emulator::Kernel& kernel, const std::vector<emulator::Argument>& arguments, uint3 block) {
  static const char* names[] = {"a pointer", "int64", "float", "a TensorMap"};
  if (int(arguments.size()) != kernel.num_parameters)
    die(std::string(kernel.name) + " takes " + std::to_string(kernel.num_parameters) + " arguments, got " +
        std::to_string(arguments.size()));
  for (size_t i = 0; i < arguments.size(); ++i)
    if (arguments[i].kind != kernel.kinds[i])
      die(std::string(kernel.name) + ": argument " + std::to_string(i) + " is " + names[int(kernel.kinds[i])] +
          ", got " + names[int(arguments[i].kind)]);
  unsigned threads = block.x * block.y * block.z;
  if (kernel.max_threads && threads > kernel.max_threads)
    die(std::string(kernel.name) + " is bound to " + std::to_string(kernel.max_threads) + " threads, launched with " +
        std::to_string(threads));
}

// Two orders of the same launch must leave the same bytes: everything here is deterministic, unless a barrier or a wait
// is missing.
void compare(const std::vector<Buffer>& buffers, const std::vector<std::vector<char>>& before, int64_t seed) {
  for (size_t i = 0; i < buffers.size(); ++i)
    for (size_t byte = 0; byte < buffers[i].bytes; ++byte)
      if (buffers[i].data[byte] != before[i][byte])
        die("the result depends on the order of threads or copies: buffer " + std::to_string(i) + " differs at byte " +
            std::to_string(byte) + " with seed " + std::to_string(seed));
}

}  // namespace

int main() {
  const emulator::Kernel& kernel = kernel_named(read_string());
  emulator::Launch launch = {};
  launch.grid = read_size();
  launch.block = read_size();
  launch.shared_bytes = read_count();
  std::vector<int64_t> seeds(read_count());
  for (int64_t& seed : seeds) seed = read_int();
  std::vector<Buffer> buffers(read_count());
  for (Buffer& buffer : buffers) buffer = read_buffer();
  std::vector<emulator::Argument> arguments(read_count());
  for (emulator::Argument& argument : arguments) argument = read_argument(buffers);
  check(kernel, arguments, launch.block);

  launch.kernel = kernel.call;
  launch.arguments = arguments.data();
  std::vector<std::vector<char>> results;
  for (int64_t seed : seeds) {
    for (Buffer& buffer : buffers) memcpy(buffer.data, buffer.original.data(), buffer.bytes);
    launch.seed = uint64_t(seed);
    emulator::run(launch);
    if (!results.empty()) compare(buffers, results, seed);
    results.clear();
    for (Buffer& buffer : buffers) results.emplace_back(buffer.data, buffer.data + buffer.bytes);
  }
  for (Buffer& buffer : buffers) fwrite(buffer.data, 1, buffer.bytes, stdout);
  fflush(stdout);
  // Without the destructors and checks at exit, which find nothing and cost time.
  _exit(0);
}
