// The loss of each row of logits [N, C, D], their logsumexp, and the sums over all rows.
//
// Bound by memory: one read of the logits (and of probability targets), 2 or 4 bytes each, nothing written but a few
// numbers a row. The maximum and the sum move along with the reading, so that any width takes one pass with nothing
// kept; each thread has up to four 16-byte loads under way, 16 KB and more a multiprocessor at half occupancy, which
// covers the latency of memory at its full rate. One exponential and about 8 instructions an element stay under the 17
// that an H100 issues while 2 bytes pass. Rows too few to occupy the device are cut into chunks and merged in order.
#include <cross_entropy.cuh>

constexpr int kThreads = 256;  // of a block, at most

struct RowLoss {
  float loss, weight;
};

DEVICE RowLoss exchange(RowLoss row, int distance) {
  return {exchange(row.loss, distance), exchange(row.weight, distance)};
}

struct SumLosses {
  DEVICE RowLoss operator()(RowLoss a, RowLoss b) const { return {a.loss + b.loss, a.weight + b.weight}; }
};

DEVICE RowLoss loss_of(const RowSum& sum, float log_sum, const Targets& targets, int64 outer, int64 inner,
                       const SCALAR* row, int64 class_stride) {
  if (targets.classes == 0 && !targets.index) return {0, 0};  // a sum of nothing
  float loss = targets.has_shares() ? sum.share_sum * log_sum - sum.shared : 0.0f;
  if (targets.probabilities) return {loss, 1};
  const int64 target = targets.index[outer * targets.outer_stride + inner * targets.inner_stride];
  if (target == targets.ignore_index) return {0, 0};
  if (target < 0 || target >= targets.classes) return {kNaN, 0};
  const float weight = targets.weight_of(target), logit = to_float(row[target * class_stride]);
  loss += (1.0f - targets.label_smoothing) * weight * (log_sum - (logit - sum.maximum));
  return {loss, weight};
}

// Where the results of rows go.
struct Results {
  SCALAR* loss;  // [rows], or null
  float* lse;    // [rows]

  DEVICE RowLoss finish(int64 row, const RowSum& sum, const Targets& targets, int64 outer, int64 inner,
                        const SCALAR* logits, int64 class_stride) const {
    const float log_sum = logf(sum.exp_sum);
    const RowLoss result = loss_of(sum, log_sum, targets, outer, inner, logits, class_stride);
    lse[row] = sum.maximum + log_sum;
    if (loss) loss[row] = from_float<SCALAR>(result.loss);
    return result;
  }
};

// Stores what the block's rows come to.
DEVICE void store_block_loss(RowLoss loss, RowLoss* block_losses) {
  __shared__ RowLoss scratch[kWarp];
  loss = team_reduce(loss, SumLosses(), blockDim.x, scratch);
  if (threadIdx.x == 0) block_losses[blockIdx.x] = loss;
}

// One team per row; or `chunks` blocks per row, whose sums go to partials [rows, chunks].
KERNEL __launch_bounds__(kThreads, 3)
    cross_entropy_rows_kernel(const SCALAR* input, const int64* index, const SCALAR* probabilities, const float* weight,
                              SCALAR* loss, float* lse, RowLoss* block_losses, RowSum* partials, int64 rows,
                              int64 inner_count, int64 classes, int64 outer_stride, int64 class_stride,
                              int64 inner_stride, int64 target_outer_stride, int64 target_class_stride,
                              int64 target_inner_stride, int64 ignore_index, float label_smoothing, int64 wide,
                              int64 team_size, int64 chunks) {
  __shared__ RowSum scratch[kWarp];
  const Targets targets = {index,
                           probabilities,
                           weight,
                           target_outer_stride,
                           target_class_stride,
                           target_inner_stride,
                           classes,
                           ignore_index,
                           label_smoothing,
                           label_smoothing / float(classes)};
  const Team team = team_of(team_size);
  const int64 block = divide(blockIdx.x, chunks), chunk = blockIdx.x - block * chunks;
  const int64 row = block * (blockDim.x / team.size) + team.index;
  const int64 outer = row < rows ? divide(row, inner_count) : 0;
  const int64 inner = row < rows ? row - outer * inner_count : 0;
  const SCALAR* logits = input + outer * outer_stride + inner * inner_stride;
  const RowTarget target(targets, outer, inner);
  const ClassRange range = class_range(row < rows ? classes : 0, chunk, chunks);

  RowSum sum = kNoClasses;
  const SCALAR* part = logits + range.first * class_stride;
  visit_row(part, class_stride, cut_row(part, range.count, wide), team,
            [&](int64 c, const auto& x) { target.add_to(sum, range.first + c, x); });
  sum = team_reduce(sum, Merge(), team.size, scratch);

  if (partials) {
    if (row < rows && team.rank == 0) partials[row * chunks + chunk] = sum;
    return;
  }
  RowLoss result = {0, 0};
  if (row < rows && team.rank == 0)
    result = Results{loss, lse}.finish(row, sum, targets, outer, inner, logits, class_stride);
  store_block_loss(result, block_losses);
}

template <int width>
DEVICE void position_losses(const PositionTile<width>& tile, const SCALAR* input, int64 outer_stride,
                            int64 class_stride, int64 inner_stride, const Targets& targets, const Results& results,
                            RowLoss* block_losses, RowSum* partials, int64 chunks) {
  DYNAMIC_SHARED(shared);
  RowSum* sums = reinterpret_cast<RowSum*>(shared);
  sum_positions(tile, input, outer_stride, class_stride, inner_stride, targets, sums);
  __syncthreads();
  RowLoss total = {0, 0};
  for (int64 position = threadIdx.x; position < tile.positions(); position += blockDim.x) {
    const RowSum sum = sum_of_position(sums, position, tile.lanes * width, blockDim.x / tile.lanes);
    const int64 inner = tile.first + position, row = tile.outer * tile.inner_count + inner;
    if (partials) {
      partials[row * chunks + tile.chunk] = sum;
    } else {
      const SCALAR* logits = input + tile.outer * outer_stride + inner * inner_stride;
      total = SumLosses()(total, results.finish(row, sum, targets, tile.outer, inner, logits, class_stride));
    }
  }
  if (!partials) store_block_loss(total, block_losses);
}

// The same for positions that lie side by side: one tile of `lanes` threads' width per block, or per `chunks` blocks.
KERNEL __launch_bounds__(kThreads, 2)
    cross_entropy_positions_kernel(const SCALAR* input, const int64* index, const SCALAR* probabilities,
                                   const float* weight, SCALAR* loss, float* lse, RowLoss* block_losses,
                                   RowSum* partials, int64 inner_count, int64 classes, int64 outer_stride,
                                   int64 class_stride, int64 inner_stride, int64 target_outer_stride,
                                   int64 target_class_stride, int64 target_inner_stride, int64 ignore_index,
                                   float label_smoothing, int64 wide, int64 lanes, int64 chunks) {
  const Targets targets = {index,
                           probabilities,
                           weight,
                           target_outer_stride,
                           target_class_stride,
                           target_inner_stride,
                           classes,
                           ignore_index,
                           label_smoothing,
                           label_smoothing / float(classes)};
  const Results results = {loss, lse};
  if (wide)
    position_losses(PositionTile<kWidth>(inner_count, chunks, lanes), input, outer_stride, class_stride, inner_stride,
                    targets, results, block_losses, partials, chunks);
  else
    position_losses(PositionTile<1>(inner_count, chunks, lanes), input, outer_stride, class_stride, inner_stride,
                    targets, results, block_losses, partials, chunks);
}

// Finishes rows that were cut into chunks: one warp per row.
KERNEL cross_entropy_merge_kernel(const SCALAR* input, const int64* index, const SCALAR* probabilities,
                                  const float* weight, SCALAR* loss, float* lse, RowLoss* block_losses,
                                  const RowSum* partials, int64 rows, int64 inner_count, int64 classes,
                                  int64 outer_stride, int64 class_stride, int64 inner_stride, int64 target_outer_stride,
                                  int64 target_class_stride, int64 target_inner_stride, int64 ignore_index,
                                  float label_smoothing, int64 chunks) {
  const Targets targets = {index,
                           probabilities,
                           weight,
                           target_outer_stride,
                           target_class_stride,
                           target_inner_stride,
                           classes,
                           ignore_index,
                           label_smoothing,
                           label_smoothing / float(classes)};
  const Team team = team_of(kWarp);
  const int64 row = int64(blockIdx.x) * (blockDim.x / kWarp) + team.index;
  RowSum sum = kNoClasses;
  if (row < rows)
    for (int64 chunk = team.rank; chunk < chunks; chunk += kWarp) sum = Merge()(sum, partials[row * chunks + chunk]);
  sum = team_reduce<RowSum>(sum, Merge(), kWarp, nullptr);
  RowLoss result = {0, 0};
  if (row < rows && team.rank == 0) {
    const int64 outer = divide(row, inner_count), inner = row - outer * inner_count;
    const SCALAR* logits = input + outer * outer_stride + inner * inner_stride;
    result = Results{loss, lse}.finish(row, sum, targets, outer, inner, logits, class_stride);
  }
  store_block_loss(result, block_losses);
}

// The sums over all rows, by one block: one order of summation, unlike atomics. loss is null where it has a number per
// row already.
KERNEL cross_entropy_reduce_kernel(const RowLoss* block_losses, SCALAR* loss, float* total_weight, int64 blocks,
                                   int64 is_mean) {
  __shared__ RowLoss scratch[kWarp];
  RowLoss total = {0, 0};
#pragma unroll 4
  for (int64 block = threadIdx.x; block < blocks; block += blockDim.x) total = SumLosses()(total, block_losses[block]);
  total = team_reduce(total, SumLosses(), blockDim.x, scratch);
  if (threadIdx.x != 0) return;
  *total_weight = total.weight;
  if (loss) *loss = from_float<SCALAR>(is_mean ? total.loss / total.weight : total.loss);
}
