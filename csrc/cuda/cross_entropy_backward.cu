// The gradients of each row of logits [N, C, D], and of probability targets:
//     grad_input_c  = grad_loss * ((sum of all coefficients) * p_c - coefficient_c)
//     grad_target_c = grad_loss * (label_smoothing - 1) * w_c * log p_c
// where coefficient_c is share_c, and (1 - label_smoothing) * w_t more at an index target t.
//
// Bound by memory: one read and one write, twice 2 or 4 bytes an element (four times with probabilities). In 16 bits,
// lse of the forward says all about a row, and any piece of it is computed apart from the rest. exp(x - lse) inherits
// the rounding of lse, though, which grows with |lse| and, next to 1, hides a confident prediction's whole gradient: in
// fp32, and where |lse| is extreme, the sums are taken anew, from a row that its block keeps in shared memory; what of
// it does not fit there is read again, from the L2 cache as far as that holds it.
#include <cross_entropy.cuh>

constexpr float kLargestLse = 4096;  // up to here its rounding does not show in 16 bits
constexpr int kPositionThreads = 256;
constexpr int kTogether = 2;  // accesses under way for what shared memory does not hold
constexpr int kLargestTeam = 512;

// What the gradient of a row depends on beside its logits.
struct RowGrad {
  float shift, log_sum;  // log p_c = (x_c - shift) - log_sum
  float coefficient_sum, grad_loss, own_weight;
  int own;  // the class of an index target, -1 where there is none
};

struct Upstream {
  const SCALAR* grad_loss;
  const float* total_weight;  // null unless the loss is a mean
  int64 outer_stride, inner_stride;

  DEVICE float of(int64 outer, int64 inner) const {
    const float grad = to_float(grad_loss[outer * outer_stride + inner * inner_stride]);
    return total_weight ? grad / *total_weight : grad;
  }
};

DEVICE RowGrad row_grad_of(float shift, float log_sum, float share_sum, const Targets& targets,
                           const Upstream& upstream, int64 outer, int64 inner) {
  RowGrad row = {shift, log_sum, targets.has_shares() ? share_sum : 0.0f, upstream.of(outer, inner), 0, -1};
  if (targets.probabilities) return row;
  const int64 target = targets.index[outer * targets.outer_stride + inner * targets.inner_stride];
  if (target == targets.ignore_index) {
    row.grad_loss = 0;
  } else if (target < 0 || target >= targets.classes) {
    row.grad_loss = kNaN;
  } else {
    row.own = int(target);
    row.own_weight = (1.0f - targets.label_smoothing) * targets.weight_of(target);
    row.coefficient_sum += row.own_weight;
  }
  return row;
}

// grad_input and, unless null, grad_target.
struct Grads {
  SCALAR *input, *target;
  int64 outer_stride, class_stride, inner_stride;
};

// The gradients of one logit and of its probability.
struct Pair {
  float input, target;
};

DEVICE Pair grads_of(const RowGrad& row, const Targets& targets, float x, float share, bool is_own,
                     float class_weight) {
  const float log_p = (x - row.shift) - row.log_sum;
  const float coefficient = share + (is_own ? row.own_weight : 0.0f);
  return {row.grad_loss * (row.coefficient_sum * exponential(log_p) - coefficient),
          row.grad_loss * (targets.label_smoothing - 1.0f) * log_p * class_weight};
}

// One team per row, or `chunks` blocks per row. The sums are: merged from partials [rows, num_partials]; or, where
// `anew`, taken from the row, of which the team keeps `kept` elements in slots of `slot_bytes`; or those of lse.
KERNEL __launch_bounds__(kLargestTeam, 1) cross_entropy_backward_rows_kernel(
    const SCALAR* grad_loss, const SCALAR* input, const int64* index, const SCALAR* probabilities, const float* weight,
    const float* lse, const float* total_weight, SCALAR* grad_input, SCALAR* grad_target, const RowSum* partials,
    int64 rows, int64 inner_count, int64 classes, int64 grad_loss_outer_stride, int64 grad_loss_inner_stride,
    int64 outer_stride, int64 class_stride, int64 inner_stride, int64 target_outer_stride, int64 target_class_stride,
    int64 target_inner_stride, int64 grad_outer_stride, int64 grad_class_stride, int64 grad_inner_stride,
    int64 ignore_index, float label_smoothing, int64 num_partials, int64 anew, int64 wide, int64 team_size,
    int64 chunks, int64 kept_classes, int64 slot_bytes) {
  DYNAMIC_SHARED(slots);
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
  const Upstream upstream = {grad_loss, total_weight, grad_loss_outer_stride, grad_loss_inner_stride};
  const Team team = team_of(team_size);
  const int64 block = divide(blockIdx.x, chunks), chunk = blockIdx.x - block * chunks;
  const int64 row = block * (blockDim.x / team.size) + team.index;
  const bool exists = row < rows;
  const int64 outer = exists ? divide(row, inner_count) : 0, inner = exists ? row - outer * inner_count : 0;
  const SCALAR* logits = input + outer * outer_stride + inner * inner_stride;
  const RowTarget target(targets, outer, inner);
  const ClassRange range = class_range(exists ? classes : 0, chunk, chunks);

  // All copies are under way before anything else of the row is known. What does not fit is read where it lies.
  const int64 kept_count = min_of(kept_classes, range.count), rest_first = range.first + kept_count;
  SCALAR* slot = reinterpret_cast<SCALAR*>(slots + team.index * slot_bytes);
  const SCALAR *part = logits + range.first * class_stride, *rest = logits + rest_first * class_stride;
  const KeptRow<SCALAR> kept(slot, part, class_stride, kept_count, wide, team);
  const Cut<kWidth> rest_cut = cut_row(rest, range.count - kept_count, wide);

  float shift = exists ? lse[row] : 0, log_sum = 0, share_sum = label_smoothing;
  bool sums_needed = anew || fabsf(shift) > kLargestLse;
  if (team.size <= kWarp) sums_needed = __any_sync(kAllLanes, sums_needed);  // all lanes must come to the reduction
  if (num_partials > 0 || sums_needed) {
    RowSum sum = kNoClasses;
    const auto add = [&](int64 first) {
      return [&sum, &target, first](int c, const auto& x) { target.add_to(sum, first + c, x); };
    };
    if (num_partials > 0) {
      for (int64 p = team.rank; p < num_partials && exists; p += team.size)
        sum = Merge()(sum, partials[row * num_partials + p]);
    } else if (chunks > 1) {
      visit_row<kTogether>(logits, class_stride, cut_row(logits, classes, wide), team, add(0));
    } else {
      visit_row<kTogether>(rest, class_stride, rest_cut, team, add(rest_first));
      kept.wait();
      kept.visit(team, add(range.first));
    }
    sum = team_reduce(sum, Merge(), team.size, scratch);
    shift = sum.maximum;
    log_sum = logf(sum.exp_sum);
    share_sum = sum.share_sum;
  }
  if (!exists) return;
  const RowGrad row_grad = row_grad_of(shift, log_sum, share_sum, targets, upstream, outer, inner);

  const int64 grad_offset = outer * grad_outer_stride + inner * grad_inner_stride;
  const auto store = [&](int64 first, const auto& x) {
    constexpr int count = sizeof(x.values) / sizeof(x.values[0]);
    float share[count] = {};
    if (targets.has_shares()) target.shares(first, share);
    Vector<SCALAR, count> to_input, to_target;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const float class_weight = grad_target ? targets.weight_of(first + i) : 0.0f;
      const Pair grads =
          grads_of(row_grad, targets, to_float(x.values[i]), share[i], first + i == row_grad.own, class_weight);
      to_input.values[i] = from_float<SCALAR>(grads.input);
      to_target.values[i] = from_float<SCALAR>(grads.target);
    }
    store_vector(grad_input + grad_offset + first * grad_class_stride, to_input);
    if (grad_target) store_vector(grad_target + grad_offset + first * grad_class_stride, to_target);
  };
  kept.wait();
  kept.visit(team, [&](int c, const auto& x) { store(range.first + c, x); });
  visit_row<kTogether>(rest, class_stride, rest_cut, team, [&](int c, const auto& x) { store(rest_first + c, x); });
}

struct Input {
  const SCALAR* logits;
  int64 outer_stride, class_stride, inner_stride;
};

// What the gradient of each of a tile's positions depends on, in shared memory at `row_grads` [lanes * width].
template <int width>
DEVICE void find_row_grads(const PositionTile<width>& tile, const Input& input, const Targets& targets,
                           const Upstream& upstream, const float* lse, const RowSum* partials, int64 num_partials,
                           bool anew, RowGrad* row_grads, RowSum* sums) {
  __shared__ float scratch[kWarp];
  float largest = 0;
  for (int64 position = threadIdx.x; position < tile.positions(); position += blockDim.x)
    largest = fmaxf(largest, fabsf(lse[tile.outer * tile.inner_count + tile.first + position]));
  largest = team_reduce(largest, [](float a, float b) { return fmaxf(a, b); }, blockDim.x, scratch);
  // Each of several blocks sums all classes of its positions by itself.
  const bool sums_needed = num_partials == 0 && (anew || largest > kLargestLse);
  const PositionTile<width> whole = tile.with_all_classes();
  if (sums_needed)
    sum_positions(whole, input.logits, input.outer_stride, input.class_stride, input.inner_stride, targets, sums);
  __syncthreads();
  for (int64 position = threadIdx.x; position < tile.positions(); position += blockDim.x) {
    const int64 inner = tile.first + position, row = tile.outer * tile.inner_count + inner;
    float shift = lse[row], log_sum = 0, share_sum = targets.label_smoothing;
    if (num_partials > 0 || sums_needed) {
      RowSum sum = kNoClasses;
      for (int64 p = 0; p < num_partials; ++p) sum = Merge()(sum, partials[row * num_partials + p]);
      if (sums_needed) sum = sum_of_position(sums, position, tile.lanes * width, whole.walkers);
      shift = sum.maximum;
      log_sum = logf(sum.exp_sum);
      share_sum = sum.share_sum;
    }
    row_grads[position] = row_grad_of(shift, log_sum, share_sum, targets, upstream, tile.outer, inner);
  }
  __syncthreads();
}

template <int width>
DEVICE void position_grads(const PositionTile<width>& tile, const Input& input, const Targets& targets,
                           const Upstream& upstream, const Grads& grads, const float* lse, const RowSum* partials,
                           int64 num_partials, bool anew) {
  DYNAMIC_SHARED(shared);
  RowGrad* row_grads = reinterpret_cast<RowGrad*>(shared);
  RowSum* sums = reinterpret_cast<RowSum*>(row_grads + tile.lanes * width);
  find_row_grads(tile, input, targets, upstream, lse, partials, num_partials, anew, row_grads, sums);

  RowGrad row[width];
#pragma unroll
  for (int j = 0; j < width; ++j) row[j] = row_grads[tile.lane * width + j];
  const int64 offset = tile.outer * input.outer_stride + tile.inner() * input.inner_stride;
  const int64 target_offset = tile.outer * targets.outer_stride + tile.inner() * targets.inner_stride;
  const int64 grad_offset = tile.outer * grads.outer_stride + tile.inner() * grads.inner_stride;
  tile.template visit<3>(
      input.logits + offset, input.class_stride, targets.classes, [&](const auto& classes, const auto& x) {
        constexpr int count = sizeof(x) / sizeof(x[0]);
#pragma unroll
        for (int k = 0; k < count; ++k) {
          const int64 c = classes[k];
          Vector<SCALAR, width> q = {}, to_input, to_target;
          if (targets.probabilities)
            q = load_vector<width>(targets.probabilities + target_offset + c * targets.class_stride);
          const bool needs_weight = targets.weight && (targets.has_shares() || grads.target);
          const float class_weight = needs_weight ? targets.weight[c] : 1.0f;
#pragma unroll
          for (int j = 0; j < width; ++j) {
            const float share = targets.has_shares() ? targets.share_of(to_float(q.values[j]), class_weight) : 0.0f;
            const Pair pair = grads_of(row[j], targets, to_float(x[k].values[j]), share, c == row[j].own, class_weight);
            to_input.values[j] = from_float<SCALAR>(pair.input);
            to_target.values[j] = from_float<SCALAR>(pair.target);
          }
          store_vector(grads.input + grad_offset + c * grads.class_stride, to_input);
          if (grads.target) store_vector(grads.target + grad_offset + c * grads.class_stride, to_target);
        }
      });
}

// The same for positions that lie side by side, in tiles of `lanes` threads' width.
KERNEL __launch_bounds__(kPositionThreads, 2) cross_entropy_backward_positions_kernel(
    const SCALAR* grad_loss, const SCALAR* input, const int64* index, const SCALAR* probabilities, const float* weight,
    const float* lse, const float* total_weight, SCALAR* grad_input, SCALAR* grad_target, const RowSum* partials,
    int64 inner_count, int64 classes, int64 grad_loss_outer_stride, int64 grad_loss_inner_stride, int64 outer_stride,
    int64 class_stride, int64 inner_stride, int64 target_outer_stride, int64 target_class_stride,
    int64 target_inner_stride, int64 grad_outer_stride, int64 grad_class_stride, int64 grad_inner_stride,
    int64 ignore_index, float label_smoothing, int64 num_partials, int64 anew, int64 wide, int64 lanes, int64 chunks) {
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
  const Upstream upstream = {grad_loss, total_weight, grad_loss_outer_stride, grad_loss_inner_stride};
  const Input logits = {input, outer_stride, class_stride, inner_stride};
  const Grads grads = {grad_input, grad_target, grad_outer_stride, grad_class_stride, grad_inner_stride};
  if (wide)
    position_grads(PositionTile<kWidth>(inner_count, chunks, lanes), logits, targets, upstream, grads, lse, partials,
                   num_partials, anew);
  else
    position_grads(PositionTile<1>(inner_count, chunks, lanes), logits, targets, upstream, grads, lse, partials,
                   num_partials, anew);
}
