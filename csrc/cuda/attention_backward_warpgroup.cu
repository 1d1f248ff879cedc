// attention, backward, for Hopper (sm_90a), after attention_delta.cu: the two passes of attention_backward.cu with
// warpgroup products and tensor copies. 16-bit inputs up to dim 128, no mask but the causal one, no dropout.
//
// Bound by the matrix unit: 7 products of len_q * len_k * dim. A block is one producer warp and two warpgroups of 64
// rows of the result. Scores and their gradients are products of two tiles in shared memory; rounded, they stay in
// registers as the left operand of the next product, so no probability passes through shared memory. The exponentials
// of a step run beside the sums of the step before and beside the other warpgroup. Registers per thread at dim 128:
// keys have 2 * 64 of sums, 2 * 32 of scores and gradients of 64 queries, 2 * 16 of their rounded parts, not all at
// once, of 240; queries 64, 2 * 32 and 16 for 64 keys. Shared memory at dim 128: 64 KB for the rows, 32 KB a stage.

#ifndef SCALAR
#define SCALAR bfloat16
#define HEAD_DIM 128
#define VALUE_DIM 128
#define STAGES 4
#endif

#include <attention_warpgroup_common.cuh>

static_assert(STAGES >= 3, "a step, the one before and the one after are there at once");
constexpr int kConsumers = 2;
constexpr int kThreads = kWarpgroup * (1 + kConsumers);
constexpr int kBlockRows = kGroupRows * kConsumers;
constexpr int kStep = 64;  // queries or keys that a step takes
constexpr int kHeadBlocks = HEAD_DIM / 64, kValueBlocks = VALUE_DIM / 64;
constexpr int kHeadRowsBytes = kHeadBlocks * kBlockRows * kRowBytes;
constexpr int kValueRowsBytes = kValueBlocks * kBlockRows * kRowBytes;
constexpr int kHeadStepBytes = kHeadBlocks * kStep * kRowBytes, kValueStepBytes = kValueBlocks * kStep * kRowBytes;
constexpr int kStatisticsBytes = 2 * kStep * 4;
constexpr int kStageBytes = kHeadStepBytes + kValueStepBytes;

// At the end of shared memory. A stage is full when its copies have come, empty when every consumer warp has read it.
struct Barriers {
  mbarrier rows_full, full[STAGES], empty[STAGES];
};

// Shared memory: the block's own rows (head_dim wide and value_dim wide), the stages, statistics of queries, barriers.
struct Memory {
  uint8 *head_rows, *value_rows, *stages;
  float* statistics;
  Barriers* barriers;

  DEVICE Memory(uint8* shared)
      : head_rows(shared),
        value_rows(head_rows + kHeadRowsBytes),
        stages(value_rows + kValueRowsBytes),
        statistics(reinterpret_cast<float*>(stages + STAGES * kStageBytes)),
        barriers(reinterpret_cast<Barriers*>(statistics + STAGES * kStatisticsBytes / 4)) {}

  DEVICE uint8* head_step(int stage) const { return stages + stage * kStageBytes; }
  DEVICE uint8* value_step(int stage) const { return head_step(stage) + kHeadStepBytes; }

  DEVICE void init_barriers() const {
    if (threadIdx.x == 0) {
      mbarrier_init(&barriers->rows_full, 1);
      for (int stage = 0; stage < STAGES; ++stage) {
        mbarrier_init(&barriers->full[stage], 1);
        mbarrier_init(&barriers->empty[stage], 4 * kConsumers);
      }
      mbarrier_init_fence();
    }
    __syncthreads();
  }
};

// The operands of a consumer: its own rows, and the first stage's tiles, read by columns (`..._sum`) where they are
// the right operand of a sum.
struct Operands {
  uint64 head_rows, value_rows, head_step, value_step, head_sum, value_sum;

  DEVICE Operands(const Memory& memory, int group)
      : head_rows(wgmma_descriptor(memory.head_rows + group * kGroupRows * kRowBytes, 0, kEightRows)),
        value_rows(wgmma_descriptor(memory.value_rows + group * kGroupRows * kRowBytes, 0, kEightRows)),
        head_step(wgmma_descriptor(memory.head_step(0), 0, kEightRows)),
        value_step(wgmma_descriptor(memory.value_step(0), 0, kEightRows)),
        head_sum(wgmma_descriptor(memory.head_step(0), kStep * kRowBytes, kEightRows)),
        value_sum(wgmma_descriptor(memory.value_step(0), kStep * kRowBytes, kEightRows)) {}

  DEVICE void start_scores(float (&scores)[kStep / 2], int stage) const {
    start_score_product<SCALAR, HEAD_DIM, kBlockRows, kStep>(scores, head_rows,
                                                             further(head_step, stage * kStageBytes));
  }

  DEVICE void start_grad_probs(float (&grads)[kStep / 2], int stage) const {
    start_score_product<SCALAR, VALUE_DIM, kBlockRows, kStep>(grads, value_rows,
                                                              further(value_step, stage * kStageBytes));
  }
};

DEVICE void release(mbarrier* empty) {
  if (threadIdx.x % kWarp == 0) mbarrier_arrive(empty);
}

// The tiles of queries that a block of keys walks over: those of each head that shares the keys, one after another.
struct Walk {
  int64 head;
  int tile, first_tile, num_tiles;

  DEVICE void advance() {
    if (++tile == num_tiles) tile = first_tile, ++head;
  }
};

// grad_key and grad_value of kBlockRows keys. score_scale, above 0, counts scores in powers of two; statistics are
// those of attention_delta.cu, [shift or delta, batch, heads, padded_len_q].
KERNEL __launch_bounds__(kThreads, 1) attention_backward_key_value_warpgroup_kernel(
    const __grid_constant__ TensorMap query_map, const __grid_constant__ TensorMap key_map,
    const __grid_constant__ TensorMap value_map, const __grid_constant__ TensorMap grad_output_map,
    const __grid_constant__ TensorMap statistics_map, const __grid_constant__ TensorMap grad_key_map,
    const __grid_constant__ TensorMap grad_value_map, int64 batch, int64 heads, int64 group_size, int64 section,
    int64 len_q, int64 len_k, int64 is_causal, float scale, float score_scale) {
  DYNAMIC_SHARED(shared);
  const Memory memory(shared);
  const int64 kv_heads = heads / group_size;
  const int num_q_tiles = int(ceil_div<int64>(len_q, kStep));
  const BlockPlace place(blockIdx.x, ceil_div<int64>(len_k, kBlockRows), batch * kv_heads, section);
  const int64 batch_index = place.head / kv_heads, kv_head = place.head % kv_heads;
  const int start_k = place.tile * kBlockRows;
  const int first_tile = is_causal ? min_of(start_k / kStep, num_q_tiles) : 0;
  const int64 steps = (num_q_tiles - first_tile) * group_size;
  Walk walk = {kv_head * group_size, first_tile, first_tile, num_q_tiles};
  Barriers* barriers = memory.barriers;
  Ring<STAGES> ring;
  memory.init_barriers();

  const int warpgroup = threadIdx.x / kWarpgroup;
  if (warpgroup == 0) {
    warpgroup_leave_registers<24>();
    if (threadIdx.x != 0) return;
    mbarrier_arrive_expect(&barriers->rows_full, kHeadRowsBytes + kValueRowsBytes);
    start_load<kBlockRows, kHeadBlocks>(memory.head_rows, &key_map, &barriers->rows_full, start_k, kv_head,
                                        batch_index);
    start_load<kBlockRows, kValueBlocks>(memory.value_rows, &value_map, &barriers->rows_full, start_k, kv_head,
                                         batch_index);
    for (int64 step = 0; step < steps; ++step, walk.advance(), ring.advance()) {
      mbarrier* full = &barriers->full[ring.stage];
      mbarrier_wait(&barriers->empty[ring.stage], ring.parity ^ 1);
      mbarrier_arrive_expect(full, kStageBytes + kStatisticsBytes);
      start_load<kStep, kHeadBlocks>(memory.head_step(ring.stage), &query_map, full, walk.tile * kStep, walk.head,
                                     batch_index);
      tensor_load_4d(memory.statistics + ring.stage * kStatisticsBytes / 4, &statistics_map, full, walk.tile * kStep,
                     int(walk.head), int(batch_index), 0);
      start_load<kStep, kValueBlocks>(memory.value_step(ring.stage), &grad_output_map, full, walk.tile * kStep,
                                      walk.head, batch_index);
    }
    return;
  }
  warpgroup_take_registers<240>();
  const int group = warpgroup - 1, lane = threadIdx.x % kWarp;
  const int group_k = start_k + group * kGroupRows, key = group_k + threadIdx.x / kWarp % 4 * 16 + lane / 4;
  const Operands operands(memory, group);
  float key_sums[HEAD_DIM / 2] = {}, value_sums[VALUE_DIM / 2] = {};
  float scores[kStep / 2], grads[kStep / 2];  // [keys, queries]
  uint32 probs[kStep / 16][4], grad_scores[kStep / 16][4];
  const auto make_probs = [&](int stage) {
    const float* shifts = memory.statistics + stage * kStatisticsBytes / 4 + lane % 4 * 2;
    const int query = walk.tile * kStep + lane % 4 * 2;
    if (is_causal && walk.tile * kStep < group_k + kGroupRows - 1) {
#pragma unroll
      for (int j = 0; j < kStep / 2; ++j)
        if (key + j / 2 % 2 * 8 > query + j / 4 * 8 + j % 2) scores[j] = -kInfinity;
    }
#pragma unroll
    for (int j = 0; j < kStep / 2; j += 4) {
      const auto shift = load_vector<2>(shifts + 2 * j);
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[j + e] = exp2_approx(fmaf(scores[j + e], score_scale, -shift.values[e % 2]));
    }
    walk.advance();
  };
  const auto make_parts = [&](int stage) {
    operands.start_grad_probs(grads, stage);
    pack_parts<SCALAR>(probs, scores);
    wgmma_wait<0>();
    wgmma_keep(grads);
    const float* deltas = memory.statistics + stage * kStatisticsBytes / 4 + kStep + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < kStep / 2; j += 4) {
      const auto delta = load_vector<2>(deltas + 2 * j);
#pragma unroll
      for (int e = 0; e < 4; ++e) grads[j + e] = scores[j + e] * (grads[j + e] - delta.values[e % 2]);
    }
    pack_parts<SCALAR>(grad_scores, grads);
  };
  const auto start_sums = [&](int stage) {
    start_value_product<SCALAR>(value_sums, probs, further(operands.value_sum, stage * kStageBytes));
    start_value_product<SCALAR>(key_sums, grad_scores, further(operands.head_sum, stage * kStageBytes));
  };

  mbarrier_wait(&barriers->rows_full, 0);
  Ring<STAGES> next = ring;
  if (steps > 0) {
    mbarrier_wait(&barriers->full[0], 0);
    operands.start_scores(scores, 0);
    wgmma_wait<0>();
    wgmma_keep(scores);
    make_probs(0);
    make_parts(0);
    next.advance();
    if (steps > 1) mbarrier_wait(&barriers->full[next.stage], next.parity);
  }
  // The scores of one step and the sums of the step before start together: all four products would leave too few
  // registers.
  for (int64 step = 1; step < steps; ++step) {
    const int stage = ring.stage;
    ring = next;
    operands.start_scores(scores, ring.stage);
    start_sums(stage);
    wgmma_wait<2>();
    wgmma_keep(scores);
    make_probs(ring.stage);
    // All the exponentials come before the wait for the sums: wgmma_keep holds them there, and the branches of this
    // wait keep ptxas from moving that one up.
    wgmma_keep(scores);
    next.advance();
    if (step + 1 < steps) mbarrier_wait(&barriers->full[next.stage], next.parity);
    wgmma_wait<0>();
    wgmma_keep(value_sums);
    wgmma_keep(key_sums);
    release(&barriers->empty[stage]);
    make_parts(ring.stage);
  }
  if (steps > 0) start_sums(ring.stage);
  wgmma_wait<0>();
  wgmma_keep(key_sums);
  wgmma_keep(value_sums);

  // The group's keys and values become their gradients, once all its warps are done with them.
  named_barrier_sync(1 + group, kWarpgroup);
  const float scales[2] = {scale, scale}, ones[2] = {1.0f, 1.0f};
  store_group<SCALAR, kBlockRows>(value_sums, ones, memory.value_rows + group * kGroupRows * kRowBytes, &grad_value_map,
                                  1 + group, group_k, kv_head, batch_index);
  store_group<SCALAR, kBlockRows>(key_sums, scales, memory.head_rows + group * kGroupRows * kRowBytes, &grad_key_map,
                                  1 + group, group_k, kv_head, batch_index);
}

// grad_query of kBlockRows queries.
KERNEL __launch_bounds__(kThreads, 1) attention_backward_query_warpgroup_kernel(
    const __grid_constant__ TensorMap query_map, const __grid_constant__ TensorMap key_map,
    const __grid_constant__ TensorMap value_map, const __grid_constant__ TensorMap grad_output_map,
    const __grid_constant__ TensorMap grad_query_map, const float* shift, const float* delta, int64 batch, int64 heads,
    int64 group_size, int64 section, int64 len_q, int64 padded_len_q, int64 len_k, int64 is_causal, float scale,
    float score_scale) {
  DYNAMIC_SHARED(shared);
  const Memory memory(shared);
  const int num_q_tiles = int(ceil_div<int64>(len_q, kBlockRows));
  const BlockPlace place(blockIdx.x, num_q_tiles, batch * heads, section * group_size);
  const int64 batch_index = place.head / heads, head = place.head % heads, kv_head = head / group_size;
  // of the causal tiles the last ones see the most keys
  const int start_q = (is_causal ? num_q_tiles - 1 - place.tile : place.tile) * kBlockRows;
  const int num_tiles = ceil_div(is_causal ? min_of(int(len_k), start_q + kBlockRows) : int(len_k), kStep);
  Barriers* barriers = memory.barriers;
  Ring<STAGES> ring;
  memory.init_barriers();

  const int warpgroup = threadIdx.x / kWarpgroup;
  if (warpgroup == 0) {
    warpgroup_leave_registers<24>();
    if (threadIdx.x != 0) return;
    mbarrier_arrive_expect(&barriers->rows_full, kHeadRowsBytes + kValueRowsBytes);
    start_load<kBlockRows, kHeadBlocks>(memory.head_rows, &query_map, &barriers->rows_full, start_q, head, batch_index);
    start_load<kBlockRows, kValueBlocks>(memory.value_rows, &grad_output_map, &barriers->rows_full, start_q, head,
                                         batch_index);
    for (int tile = 0; tile < num_tiles; ++tile, ring.advance()) {
      mbarrier* full = &barriers->full[ring.stage];
      mbarrier_wait(&barriers->empty[ring.stage], ring.parity ^ 1);
      mbarrier_arrive_expect(full, kStageBytes);
      start_load<kStep, kHeadBlocks>(memory.head_step(ring.stage), &key_map, full, tile * kStep, kv_head, batch_index);
      start_load<kStep, kValueBlocks>(memory.value_step(ring.stage), &value_map, full, tile * kStep, kv_head,
                                      batch_index);
    }
    return;
  }
  warpgroup_take_registers<240>();
  const int group = warpgroup - 1, lane = threadIdx.x % kWarp;
  const int group_q = start_q + group * kGroupRows, warp_q = group_q + threadIdx.x / kWarp % 4 * 16;
  // the keys that all queries of the group see
  const int full_end = is_causal ? min_of(int(len_k), group_q + 1) : int(len_k);
  const Operands operands(memory, group);
  float shifts[2], deltas[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp_q + 8 * half + lane / 4;
    shifts[half] = row < len_q ? shift[place.head * padded_len_q + row] : kInfinity;
    deltas[half] = row < len_q ? delta[place.head * padded_len_q + row] : 0.0f;
  }
  float sums[HEAD_DIM / 2] = {};
  float scores[kStep / 2], grads[kStep / 2];
  uint32 grad_scores[kStep / 16][4];
  const auto finish = [&](int tile) {
    if ((tile + 1) * kStep > full_end) hide_keys(scores, warp_q, tile * kStep, int(len_k), is_causal != 0);
#pragma unroll
    for (int j = 0; j < kStep / 2; ++j) {
      scores[j] = exp2_approx(fmaf(scores[j], score_scale, -shifts[j / 2 % 2]));
      grads[j] = scores[j] * (grads[j] - deltas[j / 2 % 2]);
    }
  };

  const auto start_sums = [&](int stage) {
    start_value_product<SCALAR>(sums, grad_scores, further(operands.head_sum, stage * kStageBytes));
  };

  mbarrier_wait(&barriers->rows_full, 0);
  mbarrier_wait(&barriers->full[0], 0);
  operands.start_scores(scores, 0);
  operands.start_grad_probs(grads, 0);
  wgmma_wait<0>();
  wgmma_keep(scores);
  wgmma_keep(grads);
  finish(0);
  pack_parts<SCALAR>(grad_scores, grads);
  Ring<STAGES> next = ring;
  next.advance();
  if (num_tiles > 1) mbarrier_wait(&barriers->full[next.stage], next.parity);
  for (int tile = 1; tile < num_tiles; ++tile) {
    const int stage = ring.stage;
    ring = next;
    operands.start_scores(scores, ring.stage);
    operands.start_grad_probs(grads, ring.stage);
    start_sums(stage);
    wgmma_wait<1>();
    wgmma_keep(scores);
    wgmma_keep(grads);
    finish(tile);
    wgmma_keep(grads);  // as above
    next.advance();
    if (tile + 1 < num_tiles) mbarrier_wait(&barriers->full[next.stage], next.parity);
    wgmma_wait<0>();
    wgmma_keep(sums);
    release(&barriers->empty[stage]);
    pack_parts<SCALAR>(grad_scores, grads);
  }
  start_sums(ring.stage);
  wgmma_wait<0>();
  wgmma_keep(sums);

  // The group's queries become their gradients, once all its warps are done with them.
  named_barrier_sync(1 + group, kWarpgroup);
  const float scales[2] = {scale, scale};
  store_group<SCALAR, kBlockRows>(sums, scales, memory.head_rows + group * kGroupRows * kRowBytes, &grad_query_map,
                                  1 + group, group_q, head, batch_index);
}
