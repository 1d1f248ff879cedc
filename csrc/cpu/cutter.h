// Several buffers in one workspace: a struct of buffers says once what it needs, for measuring and for cutting.
#pragma once

#include <vector>

#include "workspace.h"

namespace bigkern {

// Cuts buffers from a block of memory; with a null block it only measures.
class Cutter {
 public:
  explicit Cutter(void* block) : block_(static_cast<char*>(block)) {}

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
  Cutter cutter(workspace.acquire(bytes_of<Buffers>(arguments...)));
  return Buffers(cutter, arguments...);
}

template <class Buffers, class... Arguments>
std::vector<Buffers> cut_many(Workspace& workspace, int64_t count, const Arguments&... arguments) {
  Cutter cutter(workspace.acquire(static_cast<size_t>(count) * bytes_of<Buffers>(arguments...)));
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
