// int8_linear on any GPU from sm_80 on: a tile of the int8 product per block, scales, bias and activation behind it.
//
// The rows of the input come quantized (`quantize_rows_kernel` of int8_linear_passes.cu), padded to 16 bytes. A step is
// 128 of k: as many bytes, and twice the multiplications, of a step of 16-bit numbers.
#include <gemm_tile.cuh>
#include <int8_epilogue.cuh>

#ifndef SCALAR
#define SCALAR bfloat16
#endif
#ifndef BLOCK_M
#define BLOCK_M 128
#define BLOCK_N 128
#define WARPS_M 2
#define WARPS_N 4
#define WARPS_K 1
#define STAGES 3
#endif

typedef MatrixTile<int8, BLOCK_M, BLOCK_N, WARPS_M, WARPS_N, WARPS_K, STAGES> Tile;

// Block (i, s) adds up part s of K for tile i. `partials` [splits, M, partial_pitch(N)] is null where there is one
// part.
KERNEL __launch_bounds__(Tile::kThreads)
    int8_linear_kernel(const int8* qinput, const int8* qweight, const float* input_scale, const float* weight_scale,
                       const SCALAR* bias, SCALAR* output, SCALAR* pre_activation, int* partials, int64 M, int64 N,
                       int64 K, int64 k_per_split, int64 qinput_row_stride, int64 qinput_k_stride, int64 qinput_layout,
                       int64 qweight_row_stride, int64 qweight_k_stride, int64 qweight_layout,
                       int64 weight_scale_stride, int64 bias_stride, int64 activation, int64 output_vectors) {
  DYNAMIC_SHARED(shared);
  TilePlace place = tile_place(blockIdx.x, ceil_div(M, int64(BLOCK_M)), ceil_div(N, int64(BLOCK_N)));
  int64 first_row = place.row * BLOCK_M, first_col = place.col * BLOCK_N;
  int64 split = blockIdx.y, first_k = split * k_per_split;
  Operand<int8> rows{qinput, M, qinput_row_stride, qinput_k_stride, int(qinput_layout)};
  Operand<int8> cols{qweight, N, qweight_row_stride, qweight_k_stride, int(qweight_layout)};

  const int* sums = Tile::multiply(shared, rows, cols, first_row, first_col, first_k, min_of(first_k + k_per_split, K));

  Int8Epilogue<SCALAR> epilogue{
      input_scale,
      weight_scale,
      weight_scale_stride,
      {bias, output, pre_activation, M, N, bias_stride, int(activation), output_vectors != 0}};
  finish_tile<BLOCK_M, BLOCK_N, Tile::kThreads>(epilogue, partials, split, first_row, first_col, sums);
}
