// Scratch memory that a thread keeps between calls, so that a small problem pays for no allocation.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace bigkern {

constexpr size_t kCacheLine = 64;

// A growable, cache-line-aligned buffer. What is larger than kKeptBytes goes back after the call.
class Workspace {
 public:
  static constexpr size_t kKeptBytes = size_t{64} << 20;

  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { release(); }

  void* acquire(size_t bytes) {
    if (bytes > size_) {
      release();
      data_ = ::operator new(bytes, std::align_val_t{kCacheLine});
      size_ = bytes;
    }
    return data_;
  }
  void trim() {
    if (size_ > kKeptBytes) release();
  }

 private:
  void release() {
    ::operator delete(data_, std::align_val_t{kCacheLine});
    data_ = nullptr;
    size_ = 0;
  }

  void* data_ = nullptr;
  size_t size_ = 0;
};

// The calling thread's workspace for one purpose: one that holds a lease may call others that hold leases of other
// tags.
template <class Tag>
class Lease {
 public:
  explicit Lease(size_t bytes) : data_(workspace().acquire(bytes)) {}
  ~Lease() { workspace().trim(); }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  static Workspace& workspace() {
    static thread_local Workspace instance;
    return instance;
  }
  void* data_;
};

}  // namespace bigkern
