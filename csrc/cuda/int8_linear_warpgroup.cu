// int8_linear on Hopper: the int8 product by wgmma and TMA (warpgroup_tile.cuh), scales, bias and activation behind it.
//
// The limit is the matrix units: 1979 TOP/s on an H100. Both operands are K-major, as wgmma asks of int8.
#include <int8_epilogue.cuh>
#include <warpgroup_tile.cuh>

#ifndef SCALAR
#define SCALAR bfloat16
#endif
#ifndef BLOCK_N
#define BLOCK_N 256
#define STAGES 4
#endif

typedef WarpgroupTile<int8, BLOCK_N, STAGES> Tile;

// `partials` [splits, M, partial_pitch(N)] is null where K is in one part; `sum_splits_kernel` finishes them else.
KERNEL __launch_bounds__(kTileThreads, 1)
    int8_linear_warpgroup_kernel(const __grid_constant__ TensorMap qinput, const __grid_constant__ TensorMap qweight,
                                 const float* input_scale, const float* weight_scale, const SCALAR* bias,
                                 SCALAR* output, SCALAR* pre_activation, int* partials, int64 M, int64 N, int64 K,
                                 int64 k_per_split, int64 splits, int64 weight_scale_stride, int64 bias_stride,
                                 int64 activation, int64 output_vectors) {
  DYNAMIC_SHARED(shared);
  __shared__ Tile::Barriers barriers;
  Int8Epilogue<SCALAR> epilogue{
      input_scale,
      weight_scale,
      weight_scale_stride,
      {bias, output, pre_activation, M, N, bias_stride, int(activation), output_vectors != 0}};
  WorkList work{M, N, K, k_per_split, splits, Tile::kBlockM, BLOCK_N};
  Tile::run(shared, barriers, &qinput, &qweight, work, epilogue, partials);
}
