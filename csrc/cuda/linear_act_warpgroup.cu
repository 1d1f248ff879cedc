// linear_act on Hopper: output[M, N] = act(a[M, K] @ b[K, N] + bias[N]) by wgmma and TMA (warpgroup_tile.cuh).
//
// The limit is the matrix units: 989 TFLOP/s in 16 bits on an H100. A_MN_MAJOR and B_MN_MAJOR say that an operand lies
// contiguous along M or N: the backward's products read the forward's matrices as they are. Narrower tiles (BLOCK_N)
// are for results with few of them.
#include <warpgroup_tile.cuh>

#ifndef SCALAR
#define SCALAR bfloat16
#endif
#ifndef BLOCK_N
#define BLOCK_N 256
#define STAGES 4
#endif
#ifndef A_MN_MAJOR
#define A_MN_MAJOR 0
#define B_MN_MAJOR 0
#endif

typedef WarpgroupTile<SCALAR, BLOCK_N, STAGES, A_MN_MAJOR, B_MN_MAJOR> Tile;

// `partials` [splits, M, partial_pitch(N)] is null where K is in one part; `sum_splits_kernel` finishes them else.
KERNEL __launch_bounds__(kTileThreads, 1)
    linear_act_warpgroup_kernel(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                                const SCALAR* bias, SCALAR* output, SCALAR* pre_activation, float* partials, int64 M,
                                int64 N, int64 K, int64 k_per_split, int64 splits, int64 bias_stride, int64 activation,
                                int64 output_vectors) {
  DYNAMIC_SHARED(shared);
  __shared__ Tile::Barriers barriers;
  Epilogue<SCALAR> epilogue{bias, output, pre_activation, M, N, bias_stride, int(activation), output_vectors != 0};
  WorkList work{M, N, K, k_per_split, splits, Tile::kBlockM, BLOCK_N};
  Tile::run(shared, barriers, &a, &b, work, epilogue, partials);
}
