// The emulator's own contents of a TensorMap, as machine.py packs them, and the copies of boxes.
#pragma once

#include <functional>

#include "grid.h"

namespace emulator {

constexpr int kMaxRank = 5;

struct TensorDescription {
  char* address;
  int32_t rank;
  int32_t element_bytes;
  // The contiguous dimension first; strides in bytes.
  int64_t sizes[kMaxRank];
  int64_t strides[kMaxRank];
  int32_t box[kMaxRank];
  int32_t swizzle_bytes;
  int64_t reserved;
};
static_assert(sizeof(TensorDescription) == 128);

size_t box_bytes(const TensorDescription& tensor);

// Fails where the hardware would not copy such a box to or from this shared memory.
void require_box(const char* what, const TensorDescription& tensor, const void* shared, int rank, Site site);

// Between the tensor's box at `place` and shared memory; zeros come from outside the tensor, and nothing goes there.
// store_box calls `before_store(target, bytes)` for what it stores.
void load_box(const TensorDescription& tensor, void* shared, const int* place);
void store_box(const TensorDescription& tensor, const void* shared, const int* place,
               const std::function<void(const void*, size_t)>& before_store);

}  // namespace emulator
