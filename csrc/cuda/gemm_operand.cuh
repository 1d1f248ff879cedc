// An operand of a product in global memory, of any strides.
#pragma once

#include <common.cuh>

enum OperandLayout { kVectors = 1, kMnMajor = 2 };

// `rows` numbers the M or N index. kVectors: the contiguous dimension and the start of every line are 16-byte aligned.
template <class T>
struct Operand {
  const T* pointer;
  int64 rows, row_stride, k_stride;
  int layout;
};
