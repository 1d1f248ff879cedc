// A borrowed view of somebody else's memory: what every kernel takes and nothing more.
#pragma once

#include <cstdint>
#include <vector>

namespace bigkern {

enum class DType { float32, float64, float16, bfloat16, int8, uint8, int32, int64, boolean };

constexpr int kMaxDims = 8;

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::float32;
  int ndim = -1;  // -1: an absent optional argument (None)
  int64_t sizes[kMaxDims] = {};
  int64_t strides[kMaxDims] = {};  // in elements, as in PyTorch; 0 where a dimension is expanded

  bool defined() const { return ndim >= 0; }

  int64_t numel() const {
    int64_t count = ndim < 0 ? 0 : 1;
    for (int dim = 0; dim < ndim; ++dim) count *= sizes[dim];
    return count;
  }

  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

using TensorList = std::vector<Tensor>;

}  // namespace bigkern
