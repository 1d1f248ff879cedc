// Uninitialised working memory for the duration of a call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace bigkern {

template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), kAlignment))) {}
  ~Scratch() { ::operator delete(data_, kAlignment); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  T* data() { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};  // a cache line, and the widest vector
  T* data_;
};

}  // namespace bigkern
