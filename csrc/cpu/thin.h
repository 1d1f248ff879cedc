// Products with few rows and B's depth contiguous, as a linear layer's weight is: dot products straight from B.
//
// Nothing of B is packed: with few rows, writing a packed copy would cost more than the multiplications. Each thread
// reads its columns of B once, from memory, and again from cache for every further group of rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "matrix.h"
#include "microkernel.h"
#include "pack.h"
#include "parallel.h"
#include "workspace.h"

namespace bigkern {

// Rows times columns of one tile are sums in registers, beside a vector of each operand.
constexpr int kThinRows = 4;
template <int Rows>
#if defined(__AVX512F__)
constexpr int kThinColumns = Rows <= 3 ? 8 : 6;
#else
constexpr int kThinColumns = Rows == 1   ? 8
                             : Rows == 2 ? 4
                                         : 2;
#endif

// sums[r * columns + c] = dot(rows[r], columns[c]); rows are padded with zeros to whole vectors.
template <class T, int Rows>
void dot_tile(int64_t depth, const acc_t<T>* rows, int64_t row_pitch, const T* const* columns, acc_t<T>* sums) {
  using A = acc_t<T>;
  constexpr int kLanes = lanes<A>, kColumns = kThinColumns<Rows>;
  vec<A> sum[Rows * kColumns] = {};
  auto add = [&](int64_t k, auto read) {
    vec<A> row[Rows];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) row[r] = load(rows + r * row_pitch + k);
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      vec<A> column = read(columns[c] + k);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) sum[r * kColumns + c] += row[r] * column;
    }
  };
  int64_t k = 0;
  for (; k + kLanes <= depth; k += kLanes) add(k, [](const T* from) { return load(from); });
  if (k < depth) add(k, [&](const T* from) { return load_partial(from, depth - k); });
  sum_of_lanes<Rows * kColumns>(sum, sums);
}

#if defined(BIGKERN_BFLOAT16_DOT)
template <int Rows>
__attribute__((target("avx512bf16"))) void dot_tile_bfloat16(int64_t depth, const bfloat16* rows, int64_t row_pitch,
                                                             const bfloat16* const* columns, float* sums) {
  constexpr int kLanes = 2 * lanes<float>, kColumns = kThinColumns<Rows>;
  __m512 sum[Rows * kColumns];
#pragma GCC unroll 24
  for (int i = 0; i < Rows * kColumns; ++i) sum[i] = _mm512_setzero_ps();
  for (int64_t k = 0; k < depth; k += kLanes) {
    const __mmask32 present = depth - k >= kLanes ? ~__mmask32{0} : (__mmask32{1} << (depth - k)) - 1;
    __m512bh row[Rows];
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) row[r] = (__m512bh)_mm512_loadu_si512(rows + r * row_pitch + k);
#pragma GCC unroll 8
    for (int c = 0; c < kColumns; ++c) {
      __m512bh column = (__m512bh)_mm512_maskz_loadu_epi16(present, columns[c] + k);
#pragma GCC unroll 4
      for (int r = 0; r < Rows; ++r) sum[r * kColumns + c] = _mm512_dpbf16_ps(sum[r * kColumns + c], row[r], column);
    }
  }
  sum_of_lanes<Rows * kColumns>(reinterpret_cast<vec<float>*>(sum), sums);
}
#endif

struct ThinWorkspace;

// What the rows of A become before the dot products: the accumulator's type, or bfloat16 as it is.
template <class T, class Packed>
struct ThinKernel {
  using packed = Packed;
  static constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(Packed));

  template <int Rows>
  static void tile(int64_t depth, const Packed* rows, int64_t pitch, const T* const* columns, acc_t<T>* sums) {
#if defined(BIGKERN_BFLOAT16_DOT)
    if constexpr (std::is_same_v<Packed, bfloat16>)
      dot_tile_bfloat16<Rows>(depth, rows, pitch, columns, sums);
    else
#endif
      dot_tile<T, Rows>(depth, rows, pitch, columns, sums);
  }
};

// Rows [row, row + Rows) of the product for `cols` columns from `col`, into out[r][c].
template <class Kernel, int Rows, class T>
void thin_rows(const Matrix<T>& b, const typename Kernel::packed* rows, int64_t pitch, int64_t col, int64_t cols,
               acc_t<T>* out, int64_t out_pitch) {
  constexpr int kColumns = kThinColumns<Rows>;
  for (int64_t c = 0; c < cols; c += kColumns) {
    const T* columns[kColumns];
    // Past the last column the last one is repeated, and its sums are dropped.
    for (int i = 0; i < kColumns; ++i) columns[i] = b.data + (col + std::min(c + i, cols - 1)) * b.col_stride;
    acc_t<T> sums[Rows * kColumns];
    Kernel::template tile<Rows>(b.rows, rows, pitch, columns, sums);
    const int64_t count = std::min<int64_t>(kColumns, cols - c);
    for (int r = 0; r < Rows; ++r) std::copy_n(sums + r * kColumns, count, out + r * out_pitch + c);
  }
}

template <class Kernel, class T, class Epilogue>
void gemm_thin(const Matrix<T>& a, const Matrix<T>& b, const Epilogue& epilogue) {
  using P = typename Kernel::packed;
  constexpr int64_t kColumns = 48;  // of one piece of work; a multiple of every kThinColumns
  const int64_t M = a.rows, N = b.cols, depth = b.rows;
  const int64_t pitch = (depth + Kernel::kLanes - 1) / Kernel::kLanes * Kernel::kLanes;
  Lease<ThinWorkspace> lease(M * pitch * sizeof(P));
  P* rows = lease.template as<P>();
  for (int64_t row = 0; row < M; ++row) {
    const T* from = a.data + row * a.row_stride;
    for (int64_t k = 0; k < depth; ++k) rows[row * pitch + k] = from_acc<P>(to_acc(from[k * a.col_stride]));
    std::fill(rows + row * pitch + depth, rows + (row + 1) * pitch, P{});
  }
  const int64_t pieces = (N + kColumns - 1) / kColumns;
  const double work_per_piece = double(M) * double(kColumns) * double(depth);
  const int64_t grain = std::max<int64_t>(1, int64_t(kWorkPerThread / work_per_piece));
  parallel_for(pieces, grain, [&](int64_t begin, int64_t end) {
    acc_t<T> out[kThinRows * kColumns];
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t col = piece * kColumns, cols = std::min(kColumns, N - col);
      for (int64_t row = 0; row < M; row += kThinRows) {
        const P* group = rows + row * pitch;
        const int64_t count = std::min<int64_t>(kThinRows, M - row);
        if (count == 1) thin_rows<Kernel, 1>(b, group, pitch, col, cols, out, kColumns);
        if (count == 2) thin_rows<Kernel, 2>(b, group, pitch, col, cols, out, kColumns);
        if (count == 3) thin_rows<Kernel, 3>(b, group, pitch, col, cols, out, kColumns);
        if (count == 4) thin_rows<Kernel, 4>(b, group, pitch, col, cols, out, kColumns);
        epilogue(row, col, count, cols, out, kColumns);
      }
    }
  });
}

}  // namespace bigkern
