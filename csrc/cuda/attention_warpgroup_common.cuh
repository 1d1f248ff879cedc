// What attention's kernels for Hopper share: where tiles lie, products of a warpgroup, the ring of stages.
//
// A warpgroup's scores and sums are arrays as wgmma holds its d: warp w of the group has rows 16w to 16w + 15; with
// g = lane / 4 and t = lane % 4, elements 4j and 4j + 1 are row g, columns 8j + 2t and the next, elements 4j + 2 and
// 4j + 3 are row g + 8.
#pragma once

#include <attention_common.cuh>
#include <warpgroup.cuh>

constexpr int kWarpgroup = 128;
constexpr int kGroupRows = 64;
// Tiles lie as blocks of 64 columns, each as rows of 128 bytes with 128-byte swizzle.
constexpr int kRowBytes = 128;
constexpr int kEightRows = 8 * kRowBytes;

// Where a walk over the stages stands, and the parity of the phase it waits for.
template <int stages>
struct Ring {
  int stage = 0, parity = 0;

  DEVICE void advance() {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

DEVICE uint64 further(uint64 descriptor, int bytes) { return descriptor + (bytes >> 4); }

// Starts copying `rows` rows of a head, from `first_row` on, as `blocks` blocks of 64 columns.
template <int rows, int blocks>
DEVICE void start_load(uint8* tile, const TensorMap* map, mbarrier* full, int first_row, int64 head, int64 batch) {
#pragma unroll
  for (int block = 0; block < blocks; ++block)
    tensor_load_4d(tile + block * rows * kRowBytes, map, full, 64 * block, first_row, int(head), int(batch));
}

// d = a @ b^T over `dim` columns, started; a and b lie in tiles of a_rows and b_rows rows.
template <class T, int dim, int a_rows, int b_rows, int N>
DEVICE void start_score_product(float (&d)[N], uint64 a, uint64 b) {
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < dim / 16; ++k) {
    const int within = k % 4 * 32;
    wgmma<T, false, false>(d, further(a, k / 4 * a_rows * kRowBytes + within),
                           further(b, k / 4 * b_rows * kRowBytes + within), k != 0);
  }
  wgmma_commit();
}

// d += parts @ b, started; b lies in a tile whose rows are the columns of parts.
template <class T, int N, int steps>
DEVICE void start_value_product(float (&d)[N], const uint32 (&parts)[steps][4], uint64 b) {
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < steps; ++k) wgmma<T, true>(d, parts[k], further(b, k * 2 * kEightRows), 1);
  wgmma_commit();
}

// Hides what is_causal and len_k hide, of scores whose warp's rows start at query `first_row`, columns at key
// `first_column`.
template <int N>
DEVICE void hide_keys(float (&scores)[N], int first_row, int first_column, int len_k, bool is_causal) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const int query = first_row + lane / 4 + j / 2 % 2 * 8, key = first_column + j / 4 * 8 + lane % 4 * 2 + j % 2;
    if (key >= len_k || (is_causal && key > query)) scores[j] = -kInfinity;
  }
}

// What a product leaves in d, rounded to T, as the next one takes it.
template <class T, int N>
DEVICE void pack_parts(uint32 (&parts)[N / 8][4], const float (&d)[N]) {
#pragma unroll
  for (int k = 0; k < N / 8; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) parts[k][i] = pack<T>(d[8 * k + 2 * i], d[8 * k + 2 * i + 1]);
}

// Writes the warpgroup's rows of `sums`, times the factor of each half, into its 64 rows of a tile of `tile_rows`, and
// starts copying them to memory; `barrier` is a named barrier of the group's own. Its warps must be done reading them.
template <class T, int tile_rows, int N>
DEVICE void store_group(const float (&sums)[N], const float (&factor)[2], uint8* tile, const TensorMap* map,
                        int barrier, int first_row, int64 head, int64 batch) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = threadIdx.x / kWarp % 4 * 16 + 8 * half + lane / 4;
#pragma unroll
    for (int n = 0; n < N / 4; ++n) {
      const int chunk = (n % 8) ^ (row % 8), j = 4 * n + 2 * half;
      uint8* target = tile + n / 8 * tile_rows * kRowBytes + row * kRowBytes + chunk * 16 + lane % 4 * 4;
      *reinterpret_cast<uint32*>(target) = pack<T>(sums[j] * factor[half], sums[j + 1] * factor[half]);
    }
  }
  async_proxy_fence();
  named_barrier_sync(barrier, kWarpgroup);
  if (threadIdx.x % kWarpgroup == 0) {
#pragma unroll
    for (int block = 0; block < N / 32; ++block)
      tensor_store_4d(map, tile + block * tile_rows * kRowBytes, 64 * block, first_row, int(head), int(batch));
    tensor_store_commit();
    tensor_store_wait_read<0>();
  }
}
