// linear_act on any GPU from sm_80 on: output[M, N] = act(a[M, K] @ b[K, N] + bias[N]), a tile per block.
//
// The forward multiplies input by weight, both K-major; the backward's products read the same matrices from their other
// side (A_MN_MAJOR, B_MN_MAJOR) instead of copying them. 16-bit numbers take the matrix units, fp32 plain
// multiply-adds. The limit is the matrix units for wide tiles, and the reading of b for few rows: that is what the tile
// of 16 rows and the splits of K are for. A split writes its sums, `sum_splits_kernel` (linear_act_passes.cu) finishes
// them.
#include <fma_tile.cuh>
#include <gemm_tile.cuh>

#ifndef SCALAR
#define SCALAR bfloat16
#endif
#ifndef BLOCK_M
#define BLOCK_M 128
#define BLOCK_N 128
#endif
#ifndef STAGES  // and the warps: of 16-bit numbers alone
#define WARPS_M 2
#define WARPS_N 4
#define WARPS_K 1
#define STAGES 3
#endif
#ifndef A_MN_MAJOR
#define A_MN_MAJOR 0
#define B_MN_MAJOR 0
#endif
#ifndef BLOCK_K  // fp32 alone chooses it; a step of 16-bit numbers is a line of 128 bytes
#define BLOCK_K 16
#define THREAD_M 8
#define THREAD_N 8
#endif

template <class T>
struct TileOf {
  typedef MatrixTile<T, BLOCK_M, BLOCK_N, WARPS_M, WARPS_N, WARPS_K, STAGES, A_MN_MAJOR, B_MN_MAJOR> Tile;
};

template <>
struct TileOf<float> {
  typedef FmaTile<BLOCK_M, BLOCK_N, BLOCK_K, THREAD_M, THREAD_N> Tile;
};

typedef TileOf<SCALAR>::Tile Tile;

// Block (i, s) adds up part s of K for tile i. `partials` [splits, M, partial_pitch(N)] is null where there is one
// part.
KERNEL __launch_bounds__(Tile::kThreads, Tile::kBlocksEach)
    linear_act_kernel(const SCALAR* a, const SCALAR* b, const SCALAR* bias, SCALAR* output, SCALAR* pre_activation,
                      float* partials, int64 M, int64 N, int64 K, int64 k_per_split, int64 a_row_stride,
                      int64 a_k_stride, int64 a_layout, int64 b_col_stride, int64 b_k_stride, int64 b_layout,
                      int64 bias_stride, int64 activation, int64 output_vectors) {
  DYNAMIC_SHARED(shared);
  TilePlace place = tile_place(blockIdx.x, ceil_div(M, int64(BLOCK_M)), ceil_div(N, int64(BLOCK_N)));
  int64 first_row = place.row * BLOCK_M, first_col = place.col * BLOCK_N;
  int64 split = blockIdx.y, first_k = split * k_per_split;
  Operand<SCALAR> rows{a, M, a_row_stride, a_k_stride, int(a_layout)};
  Operand<SCALAR> cols{b, N, b_col_stride, b_k_stride, int(b_layout)};

  const float* sums =
      Tile::multiply(shared, rows, cols, first_row, first_col, first_k, min_of(first_k + k_per_split, K));

  Epilogue<SCALAR> epilogue{bias, output, pre_activation, M, N, bias_stride, int(activation), output_vectors != 0};
  finish_tile<BLOCK_M, BLOCK_N, Tile::kThreads>(epilogue, partials, split, first_row, first_col, sums);
}
