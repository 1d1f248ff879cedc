// attention, forward, for Hopper (sm_90a): warpgroup products, tensor copies and warps of two kinds (FlashAttention-3:
// Shah et al., 2024). 16-bit inputs, no mask but the causal one, no dropout; attention.cu does the rest.
//
// A block is one producer warp, which only starts copies, and CONSUMERS warpgroups of 64 queries each. At dim 128 a
// tile of 64 x 128 scores is 2 * 64 * 128 * 128 * 2 flops, 1024 cycles of the matrix unit, and 64 * 128 exponentials,
// 512 cycles of the exponential unit (16 a cycle): half of the time is lost unless they overlap. Twice over, they do:
// the warpgroups take turns to start their products, so one's softmax runs beside another's products; and within a
// warpgroup the scores of the next tile are computed beside the values of this one. Registers per thread: dim / 2 of
// sums, BLOCK_K / 2 of scores, BLOCK_K / 4 of probabilities, 160 at dim 128 and 128 keys, so two warpgroups of 240;
// at dim 64 three of 160. Shared memory: 128 queries take 32 KB and each stage of 128 keys and values 64 KB at dim
// 128: two stages fit.

#ifndef SCALAR
#define SCALAR bfloat16
#define HEAD_DIM 128
#define VALUE_DIM 128
#define CONSUMERS 2
#define BLOCK_K 128
#define STAGES 2
#endif

#include <attention_warpgroup_common.cuh>

constexpr int kBlockQ = kGroupRows * CONSUMERS;
constexpr int kHeadBlocks = HEAD_DIM / 64, kValueBlocks = VALUE_DIM / 64;
constexpr int kQueryBytes = (kHeadBlocks > kValueBlocks ? kHeadBlocks : kValueBlocks) * kBlockQ * kRowBytes;
constexpr int kKeyBytes = kHeadBlocks * BLOCK_K * kRowBytes, kValueBytes = kValueBlocks * BLOCK_K * kRowBytes;

// At the end of shared memory. A stage is full when its copy has come, empty when every consumer warp has read it.
struct Barriers {
  mbarrier query_full, key_full[STAGES], key_empty[STAGES], value_full[STAGES], value_empty[STAGES];
};

// The running softmax of a thread's two rows: those of lane / 4 and 8 more in its warp's 16.
struct Softmax {
  float row_max[2] = {-kInfinity, -kInfinity}, row_sum[2] = {0.0f, 0.0f}, rescale[2];

  // Turns scores into probabilities relative to the new maximum; what came before is to be multiplied by `rescale`.
  DEVICE void step(float (&scores)[BLOCK_K / 2], float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = -kInfinity;
#pragma unroll
      for (int j = 2 * half; j < BLOCK_K / 2; j += 4) best = fmaxf(best, fmaxf(scores[j], scores[j + 1]));
#pragma unroll
      for (int distance = 1; distance <= 2; distance *= 2)
        best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, distance));
      const float new_max = fmaxf(row_max[half], best * scale);
      const float shift = new_max == -kInfinity ? 0.0f : new_max;  // -inf - -inf is NaN
      rescale[half] = exp2_approx(row_max[half] - shift);
      row_max[half] = new_max;
      float sum = 0.0f;
#pragma unroll
      for (int j = 2 * half; j < BLOCK_K / 2; j += 4)
#pragma unroll
        for (int e = j; e < j + 2; ++e) {
          scores[e] = exp2_approx(fmaf(scores[e], scale, -shift));
          sum += scores[e];
        }
      row_sum[half] = row_sum[half] * rescale[half] + sum;
    }
  }
};

struct Problem {
  int64 head, kv_head, batch_index;
  int start_q, num_tiles, len_q, len_k;
  bool is_causal;
};

// One thread: queries, then keys and values from the last tile to the first, the keys one tile ahead.
DEVICE void produce(const Problem& problem, const TensorMap* query_map, const TensorMap* key_map,
                    const TensorMap* value_map, uint8* query_tile, uint8* key_tiles, uint8* value_tiles,
                    Barriers* barriers) {
  Ring<STAGES> keys, values;
  const auto load_keys = [&](int tile) {
    mbarrier_wait(&barriers->key_empty[keys.stage], keys.parity ^ 1);
    mbarrier_arrive_expect(&barriers->key_full[keys.stage], kKeyBytes);
    start_load<BLOCK_K, kHeadBlocks>(key_tiles + keys.stage * kKeyBytes, key_map, &barriers->key_full[keys.stage],
                                     tile * BLOCK_K, problem.kv_head, problem.batch_index);
    keys.advance();
  };
  mbarrier_arrive_expect(&barriers->query_full, kHeadBlocks * kBlockQ * kRowBytes);
  start_load<kBlockQ, kHeadBlocks>(query_tile, query_map, &barriers->query_full, problem.start_q, problem.head,
                                   problem.batch_index);
  load_keys(problem.num_tiles - 1);
  for (int tile = problem.num_tiles - 1; tile >= 0; --tile) {
    if (tile > 0) load_keys(tile - 1);
    mbarrier_wait(&barriers->value_empty[values.stage], values.parity ^ 1);
    mbarrier_arrive_expect(&barriers->value_full[values.stage], kValueBytes);
    start_load<BLOCK_K, kValueBlocks>(value_tiles + values.stage * kValueBytes, value_map,
                                      &barriers->value_full[values.stage], tile * BLOCK_K, problem.kv_head,
                                      problem.batch_index);
    values.advance();
  }
}

// The turn to start products goes around among the consumers; each has a named barrier.
DEVICE void take_turn(int group) { named_barrier_sync(1 + group, 2 * kWarpgroup); }
DEVICE void give_turn(int group) { named_barrier_arrive(1 + group, 2 * kWarpgroup); }

// A consumer of 64 queries; `sums` come out divided by nothing yet.
DEVICE void consume(const Problem& problem, int group, float scale, const uint8* query_tile, const uint8* key_tiles,
                    const uint8* value_tiles, Barriers* barriers, Softmax& softmax, float (&sums)[VALUE_DIM / 2]) {
  const int lane = threadIdx.x % kWarp;
  const int group_q = problem.start_q + group * kGroupRows, warp_q = group_q + threadIdx.x / kWarp % 4 * 16;
  // the keys that all queries of the group see
  const int full_end = problem.is_causal ? min_of(problem.len_k, group_q + 1) : problem.len_k;
  const uint64 query = wgmma_descriptor(query_tile + group * kGroupRows * kRowBytes, 0, kEightRows);
  const uint64 key = wgmma_descriptor(key_tiles, 0, kEightRows);
  const uint64 value = wgmma_descriptor(value_tiles, BLOCK_K * kRowBytes, kEightRows);
  float scores[BLOCK_K / 2];
  uint32 probs[BLOCK_K / 16][4];
  Ring<STAGES> keys, values;
  const auto release = [&](mbarrier* empty) {
    if (lane == 0) mbarrier_arrive(empty);
  };
  const auto mask = [&](int tile) {
    if ((tile + 1) * BLOCK_K > full_end) hide_keys(scores, warp_q, tile * BLOCK_K, problem.len_k, problem.is_causal);
  };

  if (group == CONSUMERS - 1 && problem.num_tiles > 1) give_turn(0);
  mbarrier_wait(&barriers->query_full, 0);
  mbarrier_wait(&barriers->key_full[0], 0);
  start_score_product<SCALAR, HEAD_DIM, kBlockQ, BLOCK_K>(scores, query, key);
  wgmma_wait<0>();
  wgmma_keep(scores);
  release(&barriers->key_empty[0]);
  keys.advance();
  mask(problem.num_tiles - 1);
  softmax.step(scores, scale);
  pack_parts<SCALAR>(probs, scores);

  if (problem.num_tiles > 1) mbarrier_wait(&barriers->key_full[keys.stage], keys.parity);
  for (int tile = problem.num_tiles - 2; tile >= 0; --tile) {
    take_turn(group);
    start_score_product<SCALAR, HEAD_DIM, kBlockQ, BLOCK_K>(scores, query, further(key, keys.stage * kKeyBytes));
    mbarrier_wait(&barriers->value_full[values.stage], values.parity);
    start_value_product<SCALAR>(sums, probs, further(value, values.stage * kValueBytes));
    if (group < CONSUMERS - 1 || tile > 0) give_turn((group + 1) % CONSUMERS);
    wgmma_wait<1>();
    wgmma_keep(scores);
    release(&barriers->key_empty[keys.stage]);
    keys.advance();
    mask(tile);
    softmax.step(scores, scale);
    // All the exponentials come before the wait for the sums: wgmma_keep holds them there, and the branches of this
    // wait keep ptxas from moving that one up.
    wgmma_keep(scores);
    if (tile > 0) mbarrier_wait(&barriers->key_full[keys.stage], keys.parity);
    wgmma_wait<0>();
    wgmma_keep(sums);
    release(&barriers->value_empty[values.stage]);
    values.advance();
#pragma unroll
    for (int j = 0; j < VALUE_DIM / 2; ++j) sums[j] *= softmax.rescale[j / 2 % 2];
    pack_parts<SCALAR>(probs, scores);
  }
  mbarrier_wait(&barriers->value_full[values.stage], values.parity);
  start_value_product<SCALAR>(sums, probs, further(value, values.stage * kValueBytes));
  wgmma_wait<0>();
  wgmma_keep(sums);
}

// score_scale, above 0, counts scores in powers of two. section, in heads of key: see BlockPlace.
KERNEL __launch_bounds__(kWarpgroup * (1 + CONSUMERS), 1) attention_forward_warpgroup_kernel(
    const __grid_constant__ TensorMap query_map, const __grid_constant__ TensorMap key_map,
    const __grid_constant__ TensorMap value_map, const __grid_constant__ TensorMap output_map, float* lse, int64 batch,
    int64 heads, int64 group_size, int64 section, int64 len_q, int64 len_k, int64 is_causal, float score_scale) {
  DYNAMIC_SHARED(shared);
  uint8 *query_tile = shared, *key_tiles = query_tile + kQueryBytes, *value_tiles = key_tiles + STAGES * kKeyBytes;
  Barriers* barriers = reinterpret_cast<Barriers*>(value_tiles + STAGES * kValueBytes);

  const int num_q_tiles = int(ceil_div<int64>(len_q, kBlockQ));
  const BlockPlace place(blockIdx.x, num_q_tiles, batch * heads, section * group_size);
  Problem problem;
  problem.batch_index = place.head / heads;
  problem.head = place.head % heads;
  problem.kv_head = problem.head / group_size;
  // of the causal tiles the last ones see the most keys
  problem.start_q = (is_causal ? num_q_tiles - 1 - place.tile : place.tile) * kBlockQ;
  problem.len_q = int(len_q);
  problem.len_k = int(len_k);
  problem.is_causal = is_causal != 0;
  const int visible_end = is_causal ? min_of(int(len_k), problem.start_q + kBlockQ) : int(len_k);
  problem.num_tiles = ceil_div(visible_end, BLOCK_K);

  if (threadIdx.x == 0) {
    mbarrier_init(&barriers->query_full, 1);
    for (int stage = 0; stage < STAGES; ++stage) {
      mbarrier_init(&barriers->key_full[stage], 1);
      mbarrier_init(&barriers->value_full[stage], 1);
      mbarrier_init(&barriers->key_empty[stage], 4 * CONSUMERS);
      mbarrier_init(&barriers->value_empty[stage], 4 * CONSUMERS);
    }
    mbarrier_init_fence();
  }
  __syncthreads();

  const int warpgroup = threadIdx.x / kWarpgroup;
  if (warpgroup == 0) {
    warpgroup_leave_registers<CONSUMERS == 2 ? 24 : 32>();
    if (threadIdx.x == 0)
      produce(problem, &query_map, &key_map, &value_map, query_tile, key_tiles, value_tiles, barriers);
    return;
  }
  warpgroup_take_registers<CONSUMERS == 2 ? 240 : 160>();
  const int group = warpgroup - 1;
  Softmax softmax;
  float sums[VALUE_DIM / 2];
#pragma unroll
  for (int j = 0; j < VALUE_DIM / 2; ++j) sums[j] = 0.0f;
  consume(problem, group, score_scale, query_tile, key_tiles, value_tiles, barriers, softmax, sums);

  // The group's queries become its outputs, once all its warps are done with them.
  named_barrier_sync(1 + CONSUMERS + group, kWarpgroup);
  const int lane = threadIdx.x % kWarp, group_q = problem.start_q + group * kGroupRows;
  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float row_sum = warp_reduce<4>(softmax.row_sum[half], Sum());
    // a row that saw no key has sum 0: dividing by 1 leaves its output 0 and its lse -inf
    const float divisor = row_sum == 0.0f ? 1.0f : row_sum;
    const int query = group_q + threadIdx.x / kWarp % 4 * 16 + 8 * half + lane / 4;
    if (lane % 4 == 0 && query < len_q) lse[place.head * len_q + query] = softmax.row_max[half] * kLn2 + logf(divisor);
    factor[half] = 1.0f / divisor;
  }
  store_group<SCALAR, kBlockQ>(sums, factor, query_tile + group * kGroupRows * kRowBytes, &output_map,
                               1 + CONSUMERS + group, group_q, problem.head, problem.batch_index);
}
