// The passes around linear_act's products: each reads and writes its arrays once, so memory bounds all three.
#include <gemm_epilogue.cuh>

#ifndef SCALAR
#define SCALAR float
#endif

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kRows = 128;                // that one block of activation_backward_kernel adds up
constexpr int kColumns = kWarp * kPiece;  // that it covers

// output = act(sum of the splits + bias).
KERNEL __launch_bounds__(kThreads)
    sum_splits_kernel(const float* partials, const SCALAR* bias, SCALAR* output, SCALAR* pre_activation, int64 splits,
                      int64 M, int64 N, int64 bias_stride, int64 activation, int64 output_vectors) {
  Epilogue<SCALAR> epilogue{bias, output, pre_activation, M, N, bias_stride, int(activation), output_vectors != 0};
  sum_splits(epilogue, partials, splits);
}

// grad_z = grad_output * act'(saved), and column_sums [blocks of rows, N] of it. Without an activation grad_z is
// grad_output, and not written; column_sums may be null.
KERNEL __launch_bounds__(kThreads)
    activation_backward_kernel(const SCALAR* grad_output, const SCALAR* saved, SCALAR* grad_z, float* column_sums,
                               int64 M, int64 N, int64 grad_row_stride, int64 grad_col_stride, int64 saved_row_stride,
                               int64 saved_col_stride, int64 grad_z_row_stride, int64 activation, int64 grad_vectors,
                               int64 saved_vectors) {
  __shared__ float warp_sums[kWarps][kColumns];
  int64 column_blocks = ceil_div(N, int64(kColumns));
  int64 row_block = blockIdx.x / column_blocks;
  int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int64 first_col = blockIdx.x % column_blocks * kColumns, col = first_col + lane * kPiece, left = N - col;
  int64 last_row = min_of((row_block + 1) * kRows, M);
  float sums[kPiece] = {};
  if (left > 0) {
    SCALAR* to = grad_z + (row_block * kRows + warp) * grad_z_row_stride + col;
#pragma unroll 1
    for (int64 row = row_block * kRows + warp; row < last_row; row += kWarps, to += kWarps * grad_z_row_stride) {
      float gradient[kPiece];
      load_values(gradient, grad_output + row * grad_row_stride + col * grad_col_stride, grad_col_stride, left,
                  grad_vectors);
      if (activation != kNone) {
        float kept[kPiece];
        load_values(kept, saved + row * saved_row_stride + col * saved_col_stride, saved_col_stride, left,
                    saved_vectors);
        apply_activation_backward(gradient, kept, int(activation));
      }
#pragma unroll
      for (int i = 0; i < kPiece; ++i) sums[i] += gradient[i];
      if (grad_z) store_values(to, gradient, left, true);  // its rows have room
    }
  }
  if (!column_sums) return;
#pragma unroll
  for (int i = 0; i < kPiece; ++i) warp_sums[warp][lane * kPiece + i] = sums[i];
  __syncthreads();
  if (first_col + threadIdx.x >= N) return;
  float sum = 0;
  for (int i = 0; i < kWarps; ++i) sum += warp_sums[i][threadIdx.x];
  column_sums[row_block * N + first_col + threadIdx.x] = sum;
}

// grad_bias [N] = the sum of column_sums [blocks, N] over its blocks; a warp adds every kWarps-th block.
KERNEL __launch_bounds__(kThreads)
    sum_columns_kernel(const float* column_sums, SCALAR* grad_bias, int64 blocks, int64 N) {
  __shared__ float warp_sums[kWarps][kWarp];
  int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int64 col = int64(blockIdx.x) * kWarp + lane;
  float sum = 0;
  if (col < N) {
#pragma unroll 4
    for (int64 block = warp; block < blocks; block += kWarps) sum += column_sums[block * N + col];
  }
  warp_sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || col >= N) return;
  for (int i = 1; i < kWarps; ++i) sum += warp_sums[i][lane];
  grad_bias[col] = from_float<SCALAR>(sum);
}
