// attention, forward (FlashAttention: Dao et al., 2022; Dao, 2023): a block owns queries of one head and walks over
// the keys with a running softmax, so that the scores never reach memory. For sm_80 and up.
//
// Bound by the matrix units: 4 * len_q * len_k * dim flops against (len_q + 2 * len_k) * dim elements of memory per
// head. A tile of 16 x 8 x 16 takes 2 cycles of a multiprocessor and reads 256 bytes of keys or values from shared
// memory, which gives 128 bytes a cycle: so up to dim 128 a warp owns 32 queries and uses what it reads twice. That
// costs 128 registers for the sums and 64 for the scores of 64 keys; dim 256 leaves room for 16 queries. A tile of
// keys needs 4 * dim / 16 exponentials for each 64 matrix instructions at dim 128, half of what the two units' rates
// allow, and blocks are small enough for two on a multiprocessor: one's softmax runs beside the other's products.
// float32 has no exact matrix instruction and takes the same way with FMAs.

#ifndef SCALAR
#define SCALAR float
#define HEAD_DIM 64
#define VALUE_DIM 64
#define WARPS 4
#define ROW_TILES 1
#define BLOCK_K 32
#define STAGES 2
#endif

#include <attention_common.cuh>

constexpr int kThreads = WARPS * kWarp;
constexpr int kWarpRows = 16 * ROW_TILES;
constexpr int kBlockQ = WARPS * kWarpRows;
constexpr int kScoreTiles = BLOCK_K / 8;
constexpr int kKeyTile = BLOCK_K * kPitch<HEAD_DIM, SCALAR>;
constexpr int kValueTile = BLOCK_K * kPitch<VALUE_DIM, SCALAR>;
constexpr int kQueryPitch = kPitch<(HEAD_DIM < VALUE_DIM ? VALUE_DIM : HEAD_DIM), SCALAR>;

// The running softmax of a warp's rows; `row_sum` holds a lane's own columns only.
struct Softmax {
  float row_max[ROW_TILES][2], row_sum[ROW_TILES][2];
  float sums[ROW_TILES][VALUE_DIM / 8][4];

  DEVICE Softmax() {
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) row_max[m][half] = -kInfinity, row_sum[m][half] = 0.0f;
#pragma unroll
      for (int n = 0; n < VALUE_DIM / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[m][n][e] = 0.0f;
    }
  }

  // Turns scores into probabilities relative to the new row maximum. Scores that are not yet scaled get their scale
  // after the maximum, so that scale and shift are one fused multiply-add; it must not be negative then.
  template <bool is_scaled>
  DEVICE void step(float (&scores)[ROW_TILES][kScoreTiles][4], float scale, float to_base_2) {
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float best = -kInfinity;
#pragma unroll
        for (int n = 0; n < kScoreTiles; ++n)
          best = fmaxf(best, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
#pragma unroll
        for (int distance = 1; distance <= 2; distance *= 2)
          best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, distance));
        const float new_max = fmaxf(row_max[m][half], is_scaled ? best : best * scale);
        const float shift = new_max == -kInfinity ? 0.0f : new_max;  // -inf - -inf is NaN
        const float rescale = exponential<SCALAR>(row_max[m][half] - shift, to_base_2);
        row_max[m][half] = new_max;
        float sum = 0.0f;
#pragma unroll
        for (int n = 0; n < kScoreTiles; ++n)
#pragma unroll
          for (int e = 2 * half; e < 2 * half + 2; ++e) {
            if constexpr (is_scaled || kIsFloat<SCALAR>)
              scores[m][n][e] =
                  exponential<SCALAR>((is_scaled ? scores[m][n][e] : scores[m][n][e] * scale) - shift, to_base_2);
            else
              scores[m][n][e] = exp2_approx(fmaf(scores[m][n][e], scale, -shift));
            sum += scores[m][n][e];
          }
        row_sum[m][half] = row_sum[m][half] * rescale + sum;
        if (__any_sync(kAllLanes, rescale != 1.0f)) {  // the maximum seldom rises after the first tiles
#pragma unroll
          for (int n = 0; n < VALUE_DIM / 8; ++n)
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; ++e) sums[m][n][e] *= rescale;
        }
      }
  }
};

// query_aligned and its like: see Matrix. section, in heads of key: see BlockPlace. score_scale counts scores in nats
// (to_base_2 is log2(e)) or in powers of two (to_base_2 is 1); additive masks come in nats.
KERNEL __launch_bounds__(kThreads, 1)
    attention_forward_kernel(const SCALAR* query, const SCALAR* key, const SCALAR* value, const void* attn_mask,
                             const int64* rng_state, SCALAR* output, float* lse, int64 query_stride_batch,
                             int64 query_stride_head, int64 query_stride_len, int64 query_stride_dim,
                             int64 key_stride_batch, int64 key_stride_head, int64 key_stride_len, int64 key_stride_dim,
                             int64 value_stride_batch, int64 value_stride_head, int64 value_stride_len,
                             int64 value_stride_dim, int64 mask_stride_batch, int64 mask_stride_head,
                             int64 mask_stride_q, int64 mask_stride_k, int64 query_aligned, int64 key_aligned,
                             int64 value_aligned, int64 mask_kind, int64 batch, int64 heads, int64 group_size,
                             int64 section, int64 len_q, int64 len_k, int64 head_dim, int64 value_dim, int64 is_causal,
                             float score_scale, float to_base_2, int64 keep_threshold, float keep_scale) {
  DYNAMIC_SHARED(shared);
  SCALAR* query_tile = reinterpret_cast<SCALAR*>(shared);
  SCALAR* key_tiles = query_tile + kBlockQ * kQueryPitch;
  SCALAR* value_tiles = key_tiles + STAGES * kKeyTile;

  const int num_q_tiles = int(ceil_div<int64>(len_q, kBlockQ));
  const BlockPlace place(blockIdx.x, num_q_tiles, batch * heads, section * group_size);
  const int64 batch_index = place.head / heads, head = place.head % heads, kv_head = head / group_size;
  // of the causal tiles the last ones see the most keys
  const int start_q = (is_causal ? num_q_tiles - 1 - place.tile : place.tile) * kBlockQ;

  const auto queries = matrix_of_head(query, batch_index, head, query_stride_batch, query_stride_head, query_stride_len,
                                      query_stride_dim, len_q, head_dim, query_aligned);
  const auto keys = matrix_of_head(key, batch_index, kv_head, key_stride_batch, key_stride_head, key_stride_len,
                                   key_stride_dim, len_k, head_dim, key_aligned);
  const auto values = matrix_of_head(value, batch_index, kv_head, value_stride_batch, value_stride_head,
                                     value_stride_len, value_stride_dim, len_k, value_dim, value_aligned);

  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warp_q = start_q + warp * kWarpRows;  // the first query of this warp
  const int visible_end = is_causal ? min_of(int(len_k), start_q + kBlockQ) : int(len_k);
  const int warp_end = warp_q >= len_q ? 0 : is_causal ? min_of(int(len_k), warp_q + kWarpRows) : int(len_k);
  const int warp_full_end = is_causal ? min_of(int(len_k), warp_q + 1) : int(len_k);  // all its queries see these keys
  const int num_tiles = ceil_div(visible_end, BLOCK_K);

  const Visibility<SCALAR> visible(attn_mask, mask_kind, batch_index * mask_stride_batch + head * mask_stride_head,
                                   mask_stride_q, mask_stride_k, len_q, len_k, is_causal);
  const Dropout dropout(rng_state, place.head, keep_threshold);

  load_tile<HEAD_DIM, kBlockQ, kThreads>(query_tile, queries, start_q);
#pragma unroll
  for (int tile = 0; tile < STAGES - 1; ++tile) {
    load_tile<HEAD_DIM, BLOCK_K, kThreads>(key_tiles + tile * kKeyTile, keys, tile * BLOCK_K);
    load_tile<VALUE_DIM, BLOCK_K, kThreads>(value_tiles + tile * kValueTile, values, tile * BLOCK_K);
    cp_async_commit();
  }

  Softmax softmax;
  for (int tile = 0; tile < num_tiles; ++tile) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // this tile has come, and every warp is done with the stage that the next load overwrites
    const int next = tile + STAGES - 1;
    if (next < num_tiles) {
      load_tile<HEAD_DIM, BLOCK_K, kThreads>(key_tiles + next % STAGES * kKeyTile, keys, next * BLOCK_K);
      load_tile<VALUE_DIM, BLOCK_K, kThreads>(value_tiles + next % STAGES * kValueTile, values, next * BLOCK_K);
    }
    cp_async_commit();
    const int start_k = tile * BLOCK_K;
    if (start_k >= warp_end) continue;

    float scores[ROW_TILES][kScoreTiles][4];
    score_product<HEAD_DIM>(scores, query_tile + warp * kWarpRows * kPitch<HEAD_DIM, SCALAR>,
                            key_tiles + tile % STAGES * kKeyTile);
    if (mask_kind != kNoMask || start_k + BLOCK_K > warp_full_end || score_scale < 0.0f) {
#pragma unroll
      for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
        for (int n = 0; n < kScoreTiles; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            scores[m][n][e] = visible(scores[m][n][e] * score_scale, warp_q + 16 * m + lane / 4 + e / 2 * 8,
                                      start_k + 8 * n + lane % 4 * 2 + e % 2);
      softmax.step<true>(scores, score_scale, to_base_2);
    } else {
      softmax.step<false>(scores, score_scale, to_base_2);
    }
    if (rng_state != nullptr) {  // after the sum: lse is the one without dropout
#pragma unroll
      for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
        for (int n = 0; n < kScoreTiles; ++n) {
          const uint32 kept = dropout.kept(warp_q + 16 * m, start_k + 8 * n);
#pragma unroll
          for (int e = 0; e < 4; ++e) scores[m][n][e] = kept >> e & 1 ? scores[m][n][e] : 0.0f;
        }
    }
    value_product<VALUE_DIM>(softmax.sums, scores, value_tiles + tile % STAGES * kValueTile);
  }
  cp_async_wait<0>();
  __syncthreads();  // the queries' tile becomes the outputs'

  float factor[ROW_TILES][2];
#pragma unroll
  for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float row_sum = warp_reduce<4>(softmax.row_sum[m][half], Sum());
      // a row that saw no key has sum 0: dividing by 1 leaves its output 0 and its lse -inf
      const float divisor = row_sum == 0.0f ? 1.0f : row_sum;
      factor[m][half] = keep_scale / divisor;
      const int row = warp_q + 16 * m + 8 * half + lane / 4;
      const float nats_per_unit = to_base_2 == 1.0f ? kLn2 : 1.0f;
      if (lane % 4 == 0 && row < len_q)
        lse[place.head * len_q + row] = softmax.row_max[m][half] * nats_per_unit + logf(divisor);
    }
  store_sums<VALUE_DIM>(softmax.sums, factor, query_tile + warp * kWarpRows * kQueryPitch,
                        output + place.head * len_q * value_dim, warp_q, int(len_q), int(value_dim));
}
