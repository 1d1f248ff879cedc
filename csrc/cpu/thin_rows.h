// Products with few rows and B's rows contiguous (a gradient times a weight): rows of B, scaled, are added up.
//
// As in thin.h nothing of B is packed; it is read once, in long runs, and the sums stay in L1.
#pragma once

#include <algorithm>
#include <cstdint>

#include "matrix.h"
#include "parallel.h"
#include "simd.h"
#include "workspace.h"

namespace bigkern {

constexpr int64_t kRowsColumns = 1024;  // of the sums that one thread keeps: 4 KiB a row

// sums[r][c] += sum over `Depth` rows k of a[r][k] * b[k][c].
template <int Depth, class T>
void add_scaled_rows(int64_t M, int64_t cols, const acc_t<T>* a, int64_t a_pitch, const T* b, int64_t b_pitch,
                     acc_t<T>* sums) {
  using A = acc_t<T>;
  constexpr int kLanes = lanes<A>;
  for (int64_t c = 0; c < cols; c += kLanes) {
    vec<A> row[Depth];
    for (int k = 0; k < Depth; ++k) {
      const T* from = b + k * b_pitch + c;
      row[k] = c + kLanes <= cols ? load(from) : load_partial(from, cols - c);
    }
    for (int64_t r = 0; r < M; ++r) {
      A* place = sums + r * kRowsColumns + c;
      vec<A> sum = load(place);
      for (int k = 0; k < Depth; ++k) sum += a[r * a_pitch + k] * row[k];
      store(place, sum);
    }
  }
}

struct ThinRowsWorkspace;
struct ThinRowsSums;

template <class T, class Epilogue>
void gemm_thin_rows(const Matrix<T>& a, const Matrix<T>& b, const Epilogue& epilogue) {
  using A = acc_t<T>;
  constexpr int kDepth = 4;
  const int64_t M = a.rows, N = b.cols, depth = b.rows;
  Lease<ThinRowsWorkspace> lease(M * depth * sizeof(A));
  A* scales = lease.template as<A>();
  for (int64_t r = 0; r < M; ++r)
    for (int64_t k = 0; k < depth; ++k) scales[r * depth + k] = to_acc(a.data[r * a.row_stride + k * a.col_stride]);
  constexpr int64_t kUnit = 64;  // columns; threads divide whole cache lines
  const double work_per_unit = double(M) * double(depth) * double(kUnit);
  parallel_for((N + kUnit - 1) / kUnit, int64_t(kWorkPerThread / work_per_unit), [&](int64_t begin, int64_t end) {
    Lease<ThinRowsSums> sums_lease(M * kRowsColumns * sizeof(A));
    A* sums = sums_lease.template as<A>();
    const int64_t last = std::min(end * kUnit, N);
    for (int64_t col = begin * kUnit; col < last; col += kRowsColumns) {
      const int64_t cols = std::min(kRowsColumns, last - col);
      std::fill(sums, sums + M * kRowsColumns, A(0));
      int64_t k = 0;
      const T* from = b.data + col;
      for (; k + kDepth <= depth; k += kDepth)
        add_scaled_rows<kDepth, T>(M, cols, scales + k, depth, from + k * b.row_stride, b.row_stride, sums);
      for (; k < depth; ++k)
        add_scaled_rows<1, T>(M, cols, scales + k, depth, from + k * b.row_stride, b.row_stride, sums);
      epilogue(0, col, M, cols, sums, kRowsColumns);
    }
  });
}

}  // namespace bigkern
