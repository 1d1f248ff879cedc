// Operands of tile.h, packed from matrices of any dtype and strides: converted, in panels of kPanel elements, padded
// with zeros.
//
//   row panels         [cols / kPanel][rows][kPanel]    elements pair columns; A, read along its rows
//   depth panels       [cols / kPanel][rows][kPanel]    elements pair rows; B, whose rows are the reduction
//   transposed panels  [rows / kPanel][cols][kPanel]    elements pair columns; B, whose columns are the reduction
//
// For float and double there are no pairs, and the first two are the same bytes.
#pragma once

#include <utility>

#include "tile.h"

namespace bigkern {

// One matrix inside somebody's tensor.
template <class T>
struct MatrixView {
  T* data;
  int64_t rows, cols;
  int64_t row_stride, col_stride;

  T* at(int64_t row, int64_t col) const { return data + row * row_stride + col * col_stride; }
  MatrixView rows_from(int64_t row, int64_t count) const { return {at(row, 0), count, cols, row_stride, col_stride}; }
};

template <class T>
__attribute__((noinline)) vec<acc_t<T>> load_row_edge(const MatrixView<const T>& view, int64_t row, int64_t col) {
  vec<acc_t<T>> values = {};
  if (row >= view.rows) return values;
  int64_t count = std::min<int64_t>(view.cols - col, lanes<acc_t<T>>);
  for (int64_t lane = 0; lane < count; ++lane) values[lane] = to_acc(*view.at(row, col + lane));
  return values;
}

// A vector of one row from column `col` on; zeros outside of the matrix.
template <class T>
inline vec<acc_t<T>> load_row(const MatrixView<const T>& view, int64_t row, int64_t col) {
  if (view.col_stride == 1 && row < view.rows && col + lanes<acc_t<T>> <= view.cols) return load(view.at(row, col));
  return load_row_edge(view, row, col);
}

__attribute__((noinline)) inline vec_u32 load_row_pairs_edge(const MatrixView<const bfloat16>& view, int64_t row,
                                                             int64_t pair) {
  bfloat16 values[2 * lanes<float>] = {};
  int64_t count = row < view.rows ? std::min<int64_t>(view.cols - 2 * pair, 2 * lanes<float>) : 0;
  for (int64_t lane = 0; lane < count; ++lane) values[lane] = *view.at(row, 2 * pair + lane);
  return bit_cast<vec_u32>(values);
}

// A vector of column pairs of one row, from pair `pair` on.
inline vec_u32 load_row_pairs(const MatrixView<const bfloat16>& view, int64_t row, int64_t pair) {
  if (view.col_stride != 1 || row >= view.rows || 2 * (pair + lanes<float>) > view.cols)
    return load_row_pairs_edge(view, row, pair);
  vec_u32 pairs;
  std::memcpy(&pairs, view.at(row, 2 * pair), sizeof(pairs));
  return pairs;
}

// Elements of one row, from element `col` on, columns paired where E asks for it.
template <class E, class T>
inline auto load_elements(const MatrixView<const T>& view, int64_t row, int64_t col) {
  if constexpr (kDepth<E> == 2)
    return load_row_pairs(view, row, col);
  else
    return load_row(view, row, col);
}

template <class E, class V>
inline void store_elements(E* target, V values) {
  static_assert(sizeof(V) == kVectorBytes);
  std::memcpy(target, &values, sizeof(values));
}

// Swaps, between rows r and r + kBit, the lanes that differ in kBit: one stage of a transposition.
template <int kBit, class V, size_t... kLane>
BIGKERN_ALWAYS_INLINE void exchange_lanes(V& low, V& high, std::index_sequence<kLane...>) {
  constexpr size_t kLanes = sizeof...(kLane);
  V first = low, second = high;
#if defined(__clang__)
  low = __builtin_shufflevector(first, second, (kLane & kBit ? kLanes + kLane - kBit : kLane)...);
  high = __builtin_shufflevector(first, second, (kLane & kBit ? kLanes + kLane : kLane + kBit)...);
#else
  using index = vec<std::conditional_t<kLanes == lanes<float>, int32_t, int64_t>>;
  low = __builtin_shuffle(first, second, index{(kLane & kBit ? kLanes + kLane - kBit : kLane)...});
  high = __builtin_shuffle(first, second, index{(kLane & kBit ? kLanes + kLane : kLane + kBit)...});
#endif
}

// Transposes a square of vectors in registers.
template <int kBit = 1, class V, size_t kLanes>
BIGKERN_ALWAYS_INLINE void transpose(V (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (size_t r = 0; r < kLanes; ++r)
    if (!(r & kBit)) exchange_lanes<kBit>(rows[r], rows[r + kBit], std::make_index_sequence<kLanes>{});
  if constexpr (2 * kBit < kLanes) transpose<2 * kBit>(rows);
}

template <class E>
constexpr int64_t row_panels_size(int64_t rows, int64_t cols) {
  return round_up(ceil_div(cols, kDepth<E>), kPanel<E>) * rows;
}
template <class E>
constexpr int64_t depth_panels_size(int64_t rows, int64_t cols) {
  return round_up(cols, kPanel<E>) * ceil_div(rows, kDepth<E>);
}
template <class E>
constexpr int64_t transposed_panels_size(int64_t rows, int64_t cols) {
  return round_up(rows, kPanel<E>) * ceil_div(cols, kDepth<E>);
}

// Each pack function writes rows [first_row, first_row + rows) of an operand of `padded_rows` rows, from a view of
// these rows alone: so that threads can share one operand. `rows` may exceed the view's; what is beyond becomes zero.

template <class E, class T>
void pack_row_panels(const MatrixView<const T>& view, int64_t first_row, int64_t rows, int64_t padded_rows, E* packed) {
  constexpr int kLanes = lanes<acc_t<E>>;
  int64_t elements = ceil_div(view.cols, kDepth<E>);
  for (int64_t row = 0; row < rows; ++row) {
    E* target = packed + (first_row + row) * kPanel<E>;
    for (int64_t col = 0; col < elements; col += kPanel<E>, target += padded_rows * kPanel<E>) {
      store_elements(target, load_elements<E>(view, row, col));
      store_elements(target + kLanes, load_elements<E>(view, row, col + kLanes));
    }
  }
}

// first_row is even where elements are pairs.
template <class E, class T>
void pack_depth_panels(const MatrixView<const T>& view, int64_t first_row, int64_t rows, int64_t padded_rows,
                       E* packed) {
  constexpr int kLanes = lanes<acc_t<E>>;
  if constexpr (kDepth<E> == 1) {
    pack_row_panels(view, first_row, rows, padded_rows, packed);
  } else {
    for (int64_t panel = 0; panel < view.cols; panel += kPanel<E>, packed += ceil_div(padded_rows, 2) * kPanel<E>)
      for (int64_t row = 0; row < rows; row += 2)
        for (int64_t col = 0; col < kPanel<E>; col += kLanes) {
          // A bfloat16 is the upper half of a float.
          vec_u32 lower = bit_cast<vec_u32>(load_row(view, row, panel + col)) >> 16;
          vec_u32 upper = bit_cast<vec_u32>(load_row(view, row + 1, panel + col));
          store_elements(packed + (first_row + row) / 2 * kPanel<E> + col, lower | upper);
        }
  }
}

template <class E, class T>
void pack_transposed_panels(const MatrixView<const T>& view, E* packed) {
  constexpr int kLanes = lanes<acc_t<E>>;
  int64_t elements = ceil_div(view.cols, kDepth<E>);
  for (int64_t panel = 0; panel < view.rows; panel += kPanel<E>, packed += elements * kPanel<E>)
    for (int64_t half = 0; half < kPanel<E>; half += kLanes)
      for (int64_t col = 0; col < elements; col += kLanes) {
        decltype(load_elements<E>(view, 0, 0)) block[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) block[lane] = load_elements<E>(view, panel + half + lane, col);
        transpose(block);
        int64_t count = std::min<int64_t>(kLanes, elements - col);
        for (int64_t k = 0; k < count; ++k) store_elements(packed + (col + k) * kPanel<E> + half, block[k]);
      }
}

}  // namespace bigkern
