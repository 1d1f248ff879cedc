#include "tensor_map.h"

#include <string.h>

#include "swizzle.h"

namespace emulator {

size_t box_bytes(const TensorDescription& tensor) {
  size_t bytes = size_t(tensor.element_bytes);
  for (int i = 0; i < tensor.rank; ++i) bytes *= size_t(tensor.box[i]);
  return bytes;
}

void require_box(const char* what, const TensorDescription& tensor, const void* shared, int rank, Site site) {
  if (tensor.rank != rank) fail(site, "%s: the tensor has %d dimensions", what, tensor.rank);
  // The copy engine's swizzle works on addresses, so a box starts where the pattern does.
  size_t alignment = tensor.swizzle_bytes ? 8 * size_t(tensor.swizzle_bytes) : 128;
  require_shared(what, shared, box_bytes(tensor), alignment, site);
}

// Calls copy(shared, global or null, bytes) for each 16 bytes of the box: the unit that is swizzled as a whole.
template <class Copy>
static void for_each_piece(const TensorDescription& tensor, char* shared, const int* place, Copy copy) {
  constexpr int kPiece = 16;
  int row_bytes = tensor.box[0] * tensor.element_bytes;
  int64_t rows = int64_t(box_bytes(tensor)) / row_bytes;
  for (int64_t row = 0; row < rows; ++row) {
    bool inside = true;
    char* global = tensor.address;
    int64_t rest = row;
    for (int i = 1; i < tensor.rank; ++i) {
      int64_t index = place[i] + rest % tensor.box[i];
      rest /= tensor.box[i];
      inside = inside && index >= 0 && index < tensor.sizes[i];
      global += index * tensor.strides[i];
    }
    for (int byte = 0; byte < row_bytes; byte += kPiece) {
      char* target = swizzled(shared + row * row_bytes + byte, tensor.swizzle_bytes);
      int64_t first = place[0] + byte / tensor.element_bytes;
      for (int i = 0; i < kPiece; i += tensor.element_bytes) {
        int64_t x = first + i / tensor.element_bytes;
        bool exists = inside && x >= 0 && x < tensor.sizes[0];
        copy(target + i, exists ? global + x * tensor.element_bytes : nullptr, size_t(tensor.element_bytes));
      }
    }
  }
}

void load_box(const TensorDescription& tensor, void* shared, const int* place) {
  for_each_piece(tensor, static_cast<char*>(shared), place, [](char* target, const char* source, size_t bytes) {
    if (source)
      memcpy(target, source, bytes);
    else
      memset(target, 0, bytes);
  });
}

void store_box(const TensorDescription& tensor, const void* shared, const int* place,
               const std::function<void(const void*, size_t)>& before_store) {
  char* source = static_cast<char*>(const_cast<void*>(shared));
  for_each_piece(tensor, source, place, [&](const char* source, char* target, size_t bytes) {
    if (!target) return;
    before_store(target, bytes);
    memcpy(target, source, bytes);
  });
}

}  // namespace emulator
