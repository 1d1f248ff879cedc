// attention, backward: what both passes need of each query. Bound by memory, which reads two rows of value_dim elements
// per query once; eight lanes share a row, 128 bytes of it at a time.

#ifndef SCALAR
#define SCALAR float
#endif

#include <common.cuh>

constexpr int kLanesPerRow = 8;

// Per query: delta, and the shift for which exp(score - shift) is the probability. A block of 128 threads has 16 rows.
KERNEL __launch_bounds__(128)
    attention_backward_delta_kernel(const SCALAR* grad_output, const float* grad_lse, const SCALAR* output,
                                    const float* lse, float* shift, float* delta, int64 grad_output_stride_batch,
                                    int64 grad_output_stride_head, int64 grad_output_stride_len,
                                    int64 grad_output_stride_dim, int64 output_stride_batch, int64 output_stride_head,
                                    int64 output_stride_len, int64 output_stride_dim, int64 are_aligned, int64 heads,
                                    int64 len_q, int64 padded_len_q, int64 value_dim, float units_per_nat) {
  constexpr int width = kWidest<SCALAR>;
  const int64 padded_row = blockIdx.x * int64(128 / kLanesPerRow) + threadIdx.x / kLanesPerRow;
  const int64 batch_head = padded_row / padded_len_q, row = padded_row % padded_len_q;
  const int64 batch = batch_head / heads, head = batch_head % heads;
  const bool is_inside = row < len_q;
  float sum = 0.0f;
  if (is_inside) {
    const SCALAR* left = output + batch * output_stride_batch + head * output_stride_head + row * output_stride_len;
    const SCALAR* right =
        grad_output + batch * grad_output_stride_batch + head * grad_output_stride_head + row * grad_output_stride_len;
    for (int64 column = threadIdx.x % kLanesPerRow * width; column < value_dim; column += kLanesPerRow * width) {
      if (are_aligned && column + width <= value_dim) {
        const auto lefts = load_vector<width>(left + column), rights = load_vector<width>(right + column);
#pragma unroll
        for (int e = 0; e < width; ++e) sum = fmaf(to_float(lefts.values[e]), to_float(rights.values[e]), sum);
      } else {
        for (int64 c = column; c < min_of<int64>(column + width, value_dim); ++c)
          sum = fmaf(to_float(left[c * output_stride_dim]), to_float(right[c * grad_output_stride_dim]), sum);
      }
    }
  }
  sum = warp_reduce<kLanesPerRow>(sum, Sum());
  if (threadIdx.x % kLanesPerRow != 0) return;
  const float row_lse = is_inside ? lse[batch_head * len_q + row] : -kInfinity;
  const bool sees_no_key = row_lse == -kInfinity;
  // grad_scores = probs * (grad_probs - delta + grad_lse); where no key is seen lse is a constant, and its gradient
  // may well be NaN
  if (grad_lse != nullptr && !sees_no_key) sum -= grad_lse[batch_head * len_q + row];
  shift[padded_row] = sees_no_key ? kInfinity : row_lse * units_per_nat;  // +inf gives such a row probability 0
  delta[padded_row] = sum;
}
