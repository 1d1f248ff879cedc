// The passes around int8_linear's product: memory bounds both.
#include <int8_epilogue.cuh>

#ifndef SCALAR
#define SCALAR float
#endif

constexpr int kThreads = 256;
constexpr int kRowPiece = 16;                      // numbers of a row that a thread takes at a time: 16 bytes of int8
constexpr float kSmallestScale = 1.17549435e-38f;  // a subnormal scale would lose its digits

// One row of input [M, K] to int8 and its scale, by `threads` threads. It is read twice; caches hold it meanwhile.
template <int threads>
DEVICE void quantize_row(const SCALAR* row, int8* qrow, float* scale_place, int64 K, int64 k_stride, bool vectors,
                         float* scratch) {
  int thread = threadIdx.x % threads;
  float largest = 0;
  for (int64 k = int64(thread) * kRowPiece; k < K; k += threads * kRowPiece) {
    float x[kRowPiece];
    load_values(x, row + k * k_stride, k_stride, K - k, vectors);
#pragma unroll
    for (int i = 0; i < kRowPiece; ++i) largest = Max()(largest, fabsf(x[i]));
  }
  largest = block_reduce<threads>(largest, Max(), scratch);
  float scale = largest == 0 ? 1.0f : fmaxf(largest / 127.0f, kSmallestScale);
  if (!(largest < kInfinity)) scale = kNaN;
  if (thread == 0) *scale_place = scale;

  for (int64 k = int64(thread) * kRowPiece; k < K; k += threads * kRowPiece) {
    float x[kRowPiece];
    load_values(x, row + k * k_stride, k_stride, K - k, vectors);
    Vector<int8, kRowPiece> q;
#pragma unroll
    for (int i = 0; i < kRowPiece; ++i) q.values[i] = int8(round_to_int8(x[i] / scale));
    store_vector(qrow + k, q);  // rows of qinput have room for whole pieces
  }
}

// A warp per row.
KERNEL __launch_bounds__(kThreads)
    quantize_short_rows_kernel(const SCALAR* input, int8* qinput, float* input_scale, int64 M, int64 K,
                               int64 row_stride, int64 k_stride, int64 qinput_row_stride, int64 vectors) {
  int64 row = int64(blockIdx.x) * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= M) return;
  quantize_row<kWarp>(input + row * row_stride, qinput + row * qinput_row_stride, input_scale + row, K, k_stride,
                      vectors, nullptr);
}

// A block per row.
KERNEL __launch_bounds__(kThreads)
    quantize_long_rows_kernel(const SCALAR* input, int8* qinput, float* input_scale, int64 M, int64 K, int64 row_stride,
                              int64 k_stride, int64 qinput_row_stride, int64 vectors) {
  __shared__ float scratch[kThreads / kWarp];
  int64 row = blockIdx.x;
  quantize_row<kThreads>(input + row * row_stride, qinput + row * qinput_row_stride, input_scale + row, K, k_stride,
                         vectors, scratch);
}

// output = act(scaled sum of the splits + bias).
KERNEL __launch_bounds__(kThreads)
    sum_splits_kernel(const int* partials, const float* input_scale, const float* weight_scale, const SCALAR* bias,
                      SCALAR* output, SCALAR* pre_activation, int64 splits, int64 M, int64 N, int64 weight_scale_stride,
                      int64 bias_stride, int64 activation, int64 output_vectors) {
  Int8Epilogue<SCALAR> epilogue{
      input_scale,
      weight_scale,
      weight_scale_stride,
      {bias, output, pre_activation, M, N, bias_stride, int(activation), output_vectors != 0}};
  sum_splits(epilogue, partials, splits);
}
