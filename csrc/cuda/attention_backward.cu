// attention, backward, after attention_delta.cu: grad_key and grad_value by key tile, then grad_query and
// grad_attn_mask by query tile. Both recompute the probabilities from lse (Dao et al., 2022). No atomics, so the
// gradients are the same on every run. For sm_80 and up.
//
// Bound by the matrix units: 7 products of len_q * len_k * dim where a single kernel with atomics needs 5; the scores
// and their gradients are computed twice. A warp owns rows of the result: keys in the first kernel, whose scores are
// therefore transposed, [keys, queries], queries in the second. So what one product leaves in registers is the left
// operand of the next, and nothing but the inputs passes through shared memory. The two sums of the first kernel take
// 2 * dim / 8 * 4 registers per 16 keys, 128 at dim 128; where both together would take more, each has blocks of its
// own.

#ifndef SCALAR
#define SCALAR float
#define HEAD_DIM 64
#define VALUE_DIM 64
#define KEY_WARPS 4
#define KEY_ROW_TILES 1
#define BLOCK_Q 32
#define QUERY_WARPS 4
#define QUERY_ROW_TILES 1
#define BLOCK_K 32
#define STAGES 2
#endif

#include <attention_common.cuh>

// What both large kernels take. shift and delta are [batch * heads, padded_len_q], so that they load without checks.
#define PROBLEM                                                                                                       \
  const SCALAR *query, const SCALAR *key, const SCALAR *value, const void *attn_mask, const int64 *rng_state,         \
      const SCALAR *grad_output, const float *shift, const float *delta, int64 query_stride_batch,                    \
      int64 query_stride_head, int64 query_stride_len, int64 query_stride_dim, int64 key_stride_batch,                \
      int64 key_stride_head, int64 key_stride_len, int64 key_stride_dim, int64 value_stride_batch,                    \
      int64 value_stride_head, int64 value_stride_len, int64 value_stride_dim, int64 mask_stride_batch,               \
      int64 mask_stride_head, int64 mask_stride_q, int64 mask_stride_k, int64 grad_output_stride_batch,               \
      int64 grad_output_stride_head, int64 grad_output_stride_len, int64 grad_output_stride_dim, int64 query_aligned, \
      int64 key_aligned, int64 value_aligned, int64 grad_output_aligned, int64 mask_kind, int64 batch, int64 heads,   \
      int64 group_size, int64 section, int64 len_q, int64 padded_len_q, int64 len_k, int64 head_dim, int64 value_dim, \
      int64 is_causal, float scale, float score_scale, float to_base_2, int64 keep_threshold, float keep_scale

// ---- probabilities --------------------------------------------------------------------------------------------------

// No probability is above 1, but an additive mask of -1e9 rounds lse that far off. NaN stays NaN.
DEVICE float probability(float shifted_score, bool is_additive, float to_base_2) {
  if (is_additive && shifted_score > 0.0f) shifted_score = 0.0f;
  return exponential<SCALAR>(shifted_score, to_base_2);
}

// The same for scores that no mask touches, of which `scale` is still to be taken.
DEVICE float plain_probability(float score, float scale, float shift) {
  if constexpr (kIsFloat<SCALAR>) return expf(score * scale - shift);
  return exp2_approx(fmaf(score, scale, -shift));
}

// ---- grad_key and grad_value ----------------------------------------------------------------------------------------

constexpr int kKeyThreads = KEY_WARPS * kWarp;
constexpr int kWarpKeys = 16 * KEY_ROW_TILES;
constexpr int kBlockKeys = KEY_WARPS * kWarpKeys;
constexpr bool kBothFit = HEAD_DIM + VALUE_DIM <= 256;

// The tiles of queries that a block of keys walks over: those of each head that shares the keys, one after another.
struct Walk {
  int64 head;
  int tile, first_tile, num_tiles;

  DEVICE Walk(int64 head, int first_tile, int num_tiles)
      : head(head), tile(first_tile), first_tile(first_tile), num_tiles(num_tiles) {}

  DEVICE void advance() {
    if (++tile == num_tiles) tile = first_tile, ++head;
  }
};

// Of kBlockKeys keys, summed over the queries of all the heads that share them. The grid is twice as large where the
// sums do not both fit: its first half computes grad_value, the second grad_key.
KERNEL __launch_bounds__(kKeyThreads, 1)
    attention_backward_key_value_kernel(PROBLEM, SCALAR* grad_key, SCALAR* grad_value) {
  constexpr int key_pitch = kPitch<HEAD_DIM, SCALAR>, value_pitch = kPitch<VALUE_DIM, SCALAR>;
  DYNAMIC_SHARED(shared);
  SCALAR* key_tile = reinterpret_cast<SCALAR*>(shared);
  SCALAR* value_tile = key_tile + kBlockKeys * key_pitch;
  SCALAR* query_tiles = value_tile + kBlockKeys * value_pitch;
  SCALAR* grad_output_tiles = query_tiles + STAGES * BLOCK_Q * key_pitch;
  float* statistics = reinterpret_cast<float*>(grad_output_tiles + STAGES * BLOCK_Q * value_pitch);

  const int64 kv_heads = heads / group_size;
  const int num_k_tiles = int(ceil_div<int64>(len_k, kBlockKeys)), num_q_tiles = int(ceil_div<int64>(len_q, BLOCK_Q));
  const int64 blocks = num_k_tiles * batch * kv_heads;
  const bool wants_value = kBothFit || blockIdx.x < blocks, wants_key = kBothFit || blockIdx.x >= blocks;
  const BlockPlace place(blockIdx.x % blocks, num_k_tiles, batch * kv_heads, section);
  const int64 batch_index = place.head / kv_heads, kv_head = place.head % kv_heads;
  const int start_k = place.tile * kBlockKeys;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warp_k = start_k + warp * kWarpKeys;  // the first key of this warp

  const int first_tile = is_causal ? min_of(start_k / BLOCK_Q, num_q_tiles) : 0;
  const int64 steps = (num_q_tiles - first_tile) * group_size;
  Walk loads(kv_head * group_size, first_tile, num_q_tiles), walk = loads;
  const auto load_step = [&](int stage) {
    const int start_q = loads.tile * BLOCK_Q;
    const auto queries = matrix_of_head(query, batch_index, loads.head, query_stride_batch, query_stride_head,
                                        query_stride_len, query_stride_dim, len_q, head_dim, query_aligned);
    const auto grad_outputs =
        matrix_of_head(grad_output, batch_index, loads.head, grad_output_stride_batch, grad_output_stride_head,
                       grad_output_stride_len, grad_output_stride_dim, len_q, value_dim, grad_output_aligned);
    load_tile<HEAD_DIM, BLOCK_Q, kKeyThreads>(query_tiles + stage * BLOCK_Q * key_pitch, queries, start_q);
    load_tile<VALUE_DIM, BLOCK_Q, kKeyThreads>(grad_output_tiles + stage * BLOCK_Q * value_pitch, grad_outputs,
                                               start_q);
    if (threadIdx.x < BLOCK_Q / 2) {
      const int row = threadIdx.x % (BLOCK_Q / 4) * 4;
      const bool is_delta = threadIdx.x >= BLOCK_Q / 4;
      cp_async_16(statistics + (2 * stage + is_delta) * BLOCK_Q + row,
                  (is_delta ? delta : shift) + (batch_index * heads + loads.head) * padded_len_q + start_q + row);
    }
    loads.advance();
  };

  load_tile<HEAD_DIM, kBlockKeys, kKeyThreads>(
      key_tile,
      matrix_of_head(key, batch_index, kv_head, key_stride_batch, key_stride_head, key_stride_len, key_stride_dim,
                     len_k, head_dim, key_aligned),
      start_k);
  load_tile<VALUE_DIM, kBlockKeys, kKeyThreads>(
      value_tile,
      matrix_of_head(value, batch_index, kv_head, value_stride_batch, value_stride_head, value_stride_len,
                     value_stride_dim, len_k, value_dim, value_aligned),
      start_k);
#pragma unroll
  for (int step = 0; step < STAGES - 1; ++step) {
    if (step < steps) load_step(step);
    cp_async_commit();
  }

  float value_sums[KEY_ROW_TILES][(kBothFit || HEAD_DIM < VALUE_DIM ? VALUE_DIM : HEAD_DIM) / 8][4] = {};
  float key_sums[KEY_ROW_TILES][kBothFit ? HEAD_DIM / 8 : 1][4] = {};
  for (int64 step = 0; step < steps; ++step, walk.advance()) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // this tile has come, and every warp is done with the stage that the next load overwrites
    if (step + STAGES - 1 < steps) load_step(int((step + STAGES - 1) % STAGES));
    cp_async_commit();
    const int start_q = walk.tile * BLOCK_Q, stage = int(step % STAGES);
    if (warp_k >= len_k || (is_causal && start_q + BLOCK_Q <= warp_k)) continue;
    const SCALAR* query_tile = query_tiles + stage * BLOCK_Q * key_pitch;
    const SCALAR* grad_output_tile = grad_output_tiles + stage * BLOCK_Q * value_pitch;
    const float *shifts = statistics + 2 * stage * BLOCK_Q, *deltas = shifts + BLOCK_Q;

    float probs[KEY_ROW_TILES][BLOCK_Q / 8][4];  // [keys, queries], first the scores
    score_product<HEAD_DIM>(probs, key_tile + warp * kWarpKeys * key_pitch, query_tile);
    const Visibility<SCALAR> visible(attn_mask, mask_kind,
                                     batch_index * mask_stride_batch + walk.head * mask_stride_head, mask_stride_q,
                                     mask_stride_k, len_q, len_k, is_causal);
    const bool is_masked = mask_kind != kNoMask || (is_causal && start_q < warp_k + kWarpKeys - 1);
    if (is_masked) {  // keys beyond len_k only reach rows that are never stored
#pragma unroll
      for (int m = 0; m < KEY_ROW_TILES; ++m)
#pragma unroll
        for (int n = 0; n < BLOCK_Q / 8; ++n) {
          __syncwarp();  // else the compiler loads further ahead than registers last
#pragma unroll
          for (int e = 0; e < 4; ++e)
            probs[m][n][e] = visible(probs[m][n][e] * score_scale, start_q + 8 * n + lane % 4 * 2 + e % 2,
                                     warp_k + 16 * m + lane / 4 + e / 2 * 8);
        }
    }
#pragma unroll
    for (int n = 0; n < BLOCK_Q / 8; ++n) {
      const auto shift_pair = load_vector<2>(shifts + 8 * n + lane % 4 * 2);
#pragma unroll
      for (int m = 0; m < KEY_ROW_TILES; ++m)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float row_shift = shift_pair.values[e % 2];
          probs[m][n][e] = is_masked ? probability(probs[m][n][e] - row_shift, visible.is_additive(), to_base_2)
                                     : plain_probability(probs[m][n][e], score_scale, row_shift);
        }
    }

    uint32 kept[KEY_ROW_TILES][BLOCK_Q / 8];
    if (rng_state != nullptr) {
      const Dropout dropout(rng_state, batch_index * heads + walk.head, keep_threshold);
#pragma unroll
      for (int m = 0; m < KEY_ROW_TILES; ++m)
#pragma unroll
        for (int n = 0; n < BLOCK_Q / 8; ++n) kept[m][n] = dropout.kept_transposed(start_q + 8 * n, warp_k + 16 * m);
    }
    if (wants_value) {
      if (rng_state != nullptr) {
        float kept_probs[KEY_ROW_TILES][BLOCK_Q / 8][4];
#pragma unroll
        for (int m = 0; m < KEY_ROW_TILES; ++m)
#pragma unroll
          for (int n = 0; n < BLOCK_Q / 8; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) kept_probs[m][n][e] = kept[m][n] >> e & 1 ? probs[m][n][e] : 0.0f;
        value_product<VALUE_DIM>(value_sums, kept_probs, grad_output_tile);
      } else {
        value_product<VALUE_DIM>(value_sums, probs, grad_output_tile);
      }
    }
    if (!wants_key) continue;

    float grads[KEY_ROW_TILES][BLOCK_Q / 8][4];  // of the probabilities, then of the scores
    score_product<VALUE_DIM>(grads, value_tile + warp * kWarpKeys * value_pitch, grad_output_tile);
#pragma unroll
    for (int n = 0; n < BLOCK_Q / 8; ++n) {
      const auto delta_pair = load_vector<2>(deltas + 8 * n + lane % 4 * 2);
#pragma unroll
      for (int m = 0; m < KEY_ROW_TILES; ++m)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (rng_state != nullptr) grads[m][n][e] = kept[m][n] >> e & 1 ? grads[m][n][e] * keep_scale : 0.0f;
          grads[m][n][e] = probs[m][n][e] * (grads[m][n][e] - delta_pair.values[e % 2]);
        }
    }
    if constexpr (kBothFit)
      value_product<HEAD_DIM>(key_sums, grads, query_tile);
    else
      value_product<HEAD_DIM>(value_sums, grads, query_tile);
  }
  cp_async_wait<0>();
  __syncthreads();  // the keys' and values' tiles become their gradients'

  float scales[KEY_ROW_TILES][2], keep_scales[KEY_ROW_TILES][2];
#pragma unroll
  for (int m = 0; m < KEY_ROW_TILES; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) scales[m][half] = scale, keep_scales[m][half] = keep_scale;
  SCALAR* key_staging = key_tile + warp * kWarpKeys * key_pitch;
  SCALAR* head_grad_key = grad_key + place.head * len_k * head_dim;
  if (wants_value)
    store_sums<VALUE_DIM>(value_sums, keep_scales, value_tile + warp * kWarpKeys * value_pitch,
                          grad_value + place.head * len_k * value_dim, warp_k, int(len_k), int(value_dim));
  if constexpr (kBothFit)
    store_sums<HEAD_DIM>(key_sums, scales, key_staging, head_grad_key, warp_k, int(len_k), int(head_dim));
  else if (wants_key)
    store_sums<HEAD_DIM>(value_sums, scales, key_staging, head_grad_key, warp_k, int(len_k), int(head_dim));
}

// ---- grad_query and grad_attn_mask ----------------------------------------------------------------------------------

constexpr int kQueryThreads = QUERY_WARPS * kWarp;
constexpr int kWarpQueries = 16 * QUERY_ROW_TILES;
constexpr int kBlockQueries = QUERY_WARPS * kWarpQueries;

// Of kBlockQueries queries. grad_attn_mask, [batch, heads, len_q, len_k], may be null; where is_causal hides a whole
// tile it is left as it was.
KERNEL __launch_bounds__(kQueryThreads, 1)
    attention_backward_query_kernel(PROBLEM, SCALAR* grad_query, void* grad_attn_mask) {
  constexpr int key_pitch = kPitch<HEAD_DIM, SCALAR>, value_pitch = kPitch<VALUE_DIM, SCALAR>;
  DYNAMIC_SHARED(shared);
  SCALAR* query_tile = reinterpret_cast<SCALAR*>(shared);
  SCALAR* grad_output_tile = query_tile + kBlockQueries * key_pitch;
  SCALAR* key_tiles = grad_output_tile + kBlockQueries * value_pitch;
  SCALAR* value_tiles = key_tiles + STAGES * BLOCK_K * key_pitch;

  const int num_q_tiles = int(ceil_div<int64>(len_q, kBlockQueries));
  const BlockPlace place(blockIdx.x, num_q_tiles, batch * heads, section * group_size);
  const int64 batch_index = place.head / heads, head = place.head % heads, kv_head = head / group_size;
  // of the causal tiles the last ones see the most keys
  const int start_q = (is_causal ? num_q_tiles - 1 - place.tile : place.tile) * kBlockQueries;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int warp_q = start_q + warp * kWarpQueries;  // the first query of this warp
  const int visible_end = is_causal ? min_of(int(len_k), start_q + kBlockQueries) : int(len_k);
  const int warp_end = warp_q >= len_q ? 0 : is_causal ? min_of(int(len_k), warp_q + kWarpQueries) : int(len_k);
  const int warp_full_end = is_causal ? min_of(int(len_k), warp_q + 1) : int(len_k);  // all its queries see these keys
  const int num_tiles = ceil_div(visible_end, BLOCK_K);

  const auto keys = matrix_of_head(key, batch_index, kv_head, key_stride_batch, key_stride_head, key_stride_len,
                                   key_stride_dim, len_k, head_dim, key_aligned);
  const auto values = matrix_of_head(value, batch_index, kv_head, value_stride_batch, value_stride_head,
                                     value_stride_len, value_stride_dim, len_k, value_dim, value_aligned);
  const auto load_step = [&](int tile) {
    const int stage = tile % STAGES;
    load_tile<HEAD_DIM, BLOCK_K, kQueryThreads>(key_tiles + stage * BLOCK_K * key_pitch, keys, tile * BLOCK_K);
    load_tile<VALUE_DIM, BLOCK_K, kQueryThreads>(value_tiles + stage * BLOCK_K * value_pitch, values, tile * BLOCK_K);
  };
  load_tile<HEAD_DIM, kBlockQueries, kQueryThreads>(
      query_tile,
      matrix_of_head(query, batch_index, head, query_stride_batch, query_stride_head, query_stride_len,
                     query_stride_dim, len_q, head_dim, query_aligned),
      start_q);
  load_tile<VALUE_DIM, kBlockQueries, kQueryThreads>(
      grad_output_tile,
      matrix_of_head(grad_output, batch_index, head, grad_output_stride_batch, grad_output_stride_head,
                     grad_output_stride_len, grad_output_stride_dim, len_q, value_dim, grad_output_aligned),
      start_q);
#pragma unroll
  for (int tile = 0; tile < STAGES - 1; ++tile) {
    if (tile < num_tiles) load_step(tile);
    cp_async_commit();
  }

  const Visibility<SCALAR> visible(attn_mask, mask_kind, batch_index * mask_stride_batch + head * mask_stride_head,
                                   mask_stride_q, mask_stride_k, len_q, len_k, is_causal);
  const Dropout dropout(rng_state, place.head, keep_threshold);
  float shifts[QUERY_ROW_TILES][2], deltas[QUERY_ROW_TILES][2], scales[QUERY_ROW_TILES][2];
#pragma unroll
  for (int m = 0; m < QUERY_ROW_TILES; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_q + 16 * m + 8 * half + lane / 4;
      const bool is_inside = row < len_q;
      shifts[m][half] = is_inside ? shift[place.head * padded_len_q + row] : kInfinity;
      deltas[m][half] = is_inside ? delta[place.head * padded_len_q + row] : 0.0f;
      scales[m][half] = scale;
    }

  float sums[QUERY_ROW_TILES][HEAD_DIM / 8][4] = {};
  for (int tile = 0; tile < num_tiles; ++tile) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();  // this tile has come, and every warp is done with the stage that the next load overwrites
    if (tile + STAGES - 1 < num_tiles) load_step(tile + STAGES - 1);
    cp_async_commit();
    const int start_k = tile * BLOCK_K;
    if (start_k >= warp_end) continue;
    const SCALAR* key_tile = key_tiles + tile % STAGES * BLOCK_K * key_pitch;

    float probs[QUERY_ROW_TILES][BLOCK_K / 8][4];  // first the scores
    score_product<HEAD_DIM>(probs, query_tile + warp * kWarpQueries * key_pitch, key_tile);
    const bool is_masked = mask_kind != kNoMask || start_k + BLOCK_K > warp_full_end;
    if (is_masked) {
#pragma unroll
      for (int m = 0; m < QUERY_ROW_TILES; ++m)
#pragma unroll
        for (int n = 0; n < BLOCK_K / 8; ++n) {
          __syncwarp();  // as above
#pragma unroll
          for (int e = 0; e < 4; ++e)
            probs[m][n][e] = visible(probs[m][n][e] * score_scale, warp_q + 16 * m + lane / 4 + e / 2 * 8,
                                     start_k + 8 * n + lane % 4 * 2 + e % 2);
        }
    }
#pragma unroll
    for (int m = 0; m < QUERY_ROW_TILES; ++m)
#pragma unroll
      for (int n = 0; n < BLOCK_K / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          probs[m][n][e] = is_masked ? probability(probs[m][n][e] - shifts[m][e / 2], visible.is_additive(), to_base_2)
                                     : plain_probability(probs[m][n][e], score_scale, shifts[m][e / 2]);

    float grads[QUERY_ROW_TILES][BLOCK_K / 8][4];  // of the probabilities, then of the scores
    score_product<VALUE_DIM>(grads, grad_output_tile + warp * kWarpQueries * value_pitch,
                             value_tiles + tile % STAGES * BLOCK_K * value_pitch);
#pragma unroll
    for (int m = 0; m < QUERY_ROW_TILES; ++m)
#pragma unroll
      for (int n = 0; n < BLOCK_K / 8; ++n) {
        const uint32 kept = rng_state != nullptr ? dropout.kept(warp_q + 16 * m, start_k + 8 * n) : 0;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (rng_state != nullptr) grads[m][n][e] = kept >> e & 1 ? grads[m][n][e] * keep_scale : 0.0f;
          grads[m][n][e] = probs[m][n][e] * (grads[m][n][e] - deltas[m][e / 2]);
        }
      }
    if (grad_attn_mask != nullptr) {
#pragma unroll
      for (int m = 0; m < QUERY_ROW_TILES; ++m)
#pragma unroll
        for (int n = 0; n < BLOCK_K / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int row = warp_q + 16 * m + lane / 4 + e / 2 * 8, column = start_k + 8 * n + lane % 4 * 2 + e % 2;
            if (row >= len_q || column >= len_k) continue;
            const int64 offset = (place.head * len_q + row) * len_k + column;
            if (mask_kind == kFloatMask)
              static_cast<float*>(grad_attn_mask)[offset] = grads[m][n][e];
            else
              static_cast<SCALAR*>(grad_attn_mask)[offset] = from_float<SCALAR>(grads[m][n][e]);
          }
    }
    value_product<HEAD_DIM>(sums, grads, key_tile);
  }
  cp_async_wait<0>();
  __syncthreads();  // the queries' tile becomes their gradients'
  store_sums<HEAD_DIM>(sums, scales, query_tile + warp * kWarpQueries * key_pitch,
                       grad_query + place.head * len_q * head_dim, warp_q, int(len_q), int(head_dim));
}
