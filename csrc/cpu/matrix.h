// A matrix with any strides, in elements.
#pragma once

#include <cstdint>

namespace bigkern {

template <class T>
struct Matrix {
  const T* data;
  int64_t rows, cols;
  int64_t row_stride, col_stride;
};

template <class T>
Matrix<T> transposed(const Matrix<T>& m) {
  return {m.data, m.cols, m.rows, m.col_stride, m.row_stride};
}

}  // namespace bigkern
