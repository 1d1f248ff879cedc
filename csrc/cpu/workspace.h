// Memory that a thread keeps from one call to the next, so that a call neither allocates nor clears what it only
// overwrites.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace bigkern {

constexpr size_t kCacheLine = 64;

class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { std::free(data_); }

  char* reserve(size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      data_ = std::aligned_alloc(kCacheLine, bytes);
      size_ = data_ ? bytes : 0;
      if (!data_) throw std::bad_alloc();
    }
    return static_cast<char*>(data_);
  }

  void shrink_below(size_t bytes) {
    if (size_ < bytes) return;
    std::free(data_);
    data_ = nullptr;
    size_ = 0;
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// Cuts buffers from a block of memory; with a null block it only measures.
class Cutter {
 public:
  explicit Cutter(char* block) : block_(block) {}

  template <class T>
  T* take(int64_t count) {
    T* buffer = block_ ? reinterpret_cast<T*>(block_ + used_) : nullptr;
    used_ += (static_cast<size_t>(count) * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
    return buffer;
  }
  size_t used() const { return used_; }

 private:
  char* block_;
  size_t used_ = 0;
};

// Buffers is constructed from (Cutter&, arguments...) and takes its parts there.
template <class Buffers, class... Arguments>
size_t bytes_of(const Arguments&... arguments) {
  Cutter cutter(nullptr);
  Buffers(cutter, arguments...);
  return cutter.used();
}

template <class Buffers, class... Arguments>
Buffers cut(Workspace& workspace, const Arguments&... arguments) {
  Cutter cutter(workspace.reserve(bytes_of<Buffers>(arguments...)));
  return Buffers(cutter, arguments...);
}

template <class Buffers, class... Arguments>
std::vector<Buffers> cut_many(Workspace& workspace, int64_t count, const Arguments&... arguments) {
  Cutter cutter(workspace.reserve(static_cast<size_t>(count) * bytes_of<Buffers>(arguments...)));
  std::vector<Buffers> parts;
  for (int64_t part = 0; part < count; ++part) parts.emplace_back(cutter, arguments...);
  return parts;
}

// One for what a thread alone uses, one for what it shares with the threads that it starts.
inline Workspace& private_workspace() {
  static thread_local Workspace workspace;
  return workspace;
}
inline Workspace& shared_workspace() {
  static thread_local Workspace workspace;
  return workspace;
}

}  // namespace bigkern
