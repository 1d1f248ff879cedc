// What the forward and the backward of cross entropy share: a row's sums, its target, and the classes' shares.
//
// With m the row's maximum, s = sum_c exp(x_c - m) and log p_c = x_c - m - log(s), a row's loss is
//     (1 - label_smoothing) * w_t * -log p_t  +  sum_c share_c * -log p_c,
// where share_c = w_c * label_smoothing / C for an index target t; for probabilities q the first term is absent and
// share_c = w_c * (q_c * (1 - label_smoothing) + label_smoothing / C).
#pragma once

#include <rows.cuh>

#ifndef SCALAR
#define SCALAR float
#endif

constexpr int kWidth = kWidest<SCALAR>;
constexpr float kLowest = -3.402823466e38f;

// e^x, x <= 0. What one instruction leaves out of it vanishes in 16 bits.
DEVICE float exponential(float x) {
  if constexpr (sizeof(SCALAR) == 2)
    return exp2_approx(x * 1.4426950408889634f);
  else
    return expf(x);
}

// ---- sums over classes ---------------------------------------------------------------------------------------------

// Of the classes seen so far: the maximum m, sum_c exp(x_c - m), sum_c share_c and sum_c share_c * (x_c - m).
struct RowSum {
  float maximum, exp_sum, share_sum, shared;
};

constexpr RowSum kNoClasses = {kLowest, 0, 0, 0};

// share_sum * (from - to), what `shared` changes by when the maximum moves; a difference that overflows times 0 is 0.
DEVICE float moved(float share_sum, float from, float to) {
  return share_sum == 0 || from == to ? 0.0f : share_sum * (from - to);
}

// Adds `count` logits at once: one exponential each, and one more only where the maximum moves.
template <int count>
DEVICE void add_logits(RowSum& sum, const float (&x)[count]) {
  float highest = sum.maximum;
#pragma unroll
  for (int i = 0; i < count; ++i) highest = fmaxf(highest, x[i]);
  if (highest > sum.maximum) {
    sum.exp_sum *= exponential(sum.maximum - highest);
    sum.shared += moved(sum.share_sum, sum.maximum, highest);
    sum.maximum = highest;
  }
  float total = 0;
#pragma unroll
  for (int i = 0; i < count; ++i) total += exponential(x[i] - sum.maximum);
  sum.exp_sum += total;
}

// Adds the share of a logit, after the logit.
DEVICE void add_share(RowSum& sum, float x, float share) {
  sum.share_sum += share;
  sum.shared = fmaf(share, x - sum.maximum, sum.shared);
}

struct Merge {
  // The same to the last bit with a and b exchanged.
  DEVICE RowSum operator()(const RowSum& a, const RowSum& b) const {
    const float maximum = fmaxf(a.maximum, b.maximum);
    const float moved_a = moved(a.share_sum, a.maximum, maximum), moved_b = moved(b.share_sum, b.maximum, maximum);
    const float decayed_a = a.exp_sum * exponential(a.maximum - maximum);
    const float decayed_b = b.exp_sum * exponential(b.maximum - maximum);
    // Rounded products, not a fused one and a rounded one.
    return {maximum, __fadd_rn(decayed_a, decayed_b), a.share_sum + b.share_sum,
            (a.shared + b.shared) + (moved_a + moved_b)};
  }
};

DEVICE RowSum exchange(const RowSum& sum, int distance) {
  return {exchange(sum.maximum, distance), exchange(sum.exp_sum, distance), exchange(sum.share_sum, distance),
          exchange(sum.shared, distance)};
}

// ---- targets -------------------------------------------------------------------------------------------------------

// Class indices or probabilities (one of them null), of the row (outer, inner) at these strides.
struct Targets {
  const int64* index;
  const SCALAR* probabilities;
  const float* weight;  // [classes], side by side; or null
  int64 outer_stride, class_stride, inner_stride, classes, ignore_index;
  float label_smoothing, even_share;  // even_share: label_smoothing / classes

  DEVICE bool has_shares() const { return probabilities || label_smoothing != 0; }
  DEVICE float weight_of(int64 c) const { return weight ? weight[c] : 1.0f; }
  DEVICE float share_of(float probability, float class_weight) const {
    return class_weight * (probabilities ? fmaf(probability, 1.0f - label_smoothing, even_share) : even_share);
  }
};

// The targets of one row of classes.
struct RowTarget {
  const Targets& all;
  int64 offset;

  DEVICE RowTarget(const Targets& all, int64 outer, int64 inner)
      : all(all), offset(outer * all.outer_stride + inner * all.inner_stride) {}

  // The shares of `count` neighbouring classes.
  template <int count>
  DEVICE void shares(int64 first, float (&share)[count]) const {
    Vector<SCALAR, count> q = {};
    if (all.probabilities) q = load_vector<count>(all.probabilities + offset + first * all.class_stride);
#pragma unroll
    for (int i = 0; i < count; ++i) share[i] = all.share_of(to_float(q.values[i]), all.weight_of(first + i));
  }

  // Adds the logits of neighbouring classes.
  template <int count>
  DEVICE void add_to(RowSum& sum, int64 first, const Vector<SCALAR, count>& logits) const {
    float x[count];
    to_floats(logits, x);
    add_logits(sum, x);
    if (!all.has_shares()) return;
    float share[count];
    shares(first, share);
#pragma unroll
    for (int i = 0; i < count; ++i) add_share(sum, x[i], share[i]);
  }
};

// The classes of one of `chunks` equal pieces of a row, which begin where vectors of the row do.
struct ClassRange {
  int64 first, count;
};

DEVICE ClassRange class_range(int64 classes, int64 chunk, int64 chunks) {
  const int64 each = chunks == 1 ? classes : ceil_div<int64>(divide(classes + chunks - 1, chunks), kWidth) * kWidth;
  const int64 first = min_of(classes, chunk * each);
  return {first, min_of(each, classes - first)};
}

// ---- rows of classes that do not lie side by side
// --------------------------------------------------------------------

// Positions, of which neighbours lie side by side, [outer, inner] in tiles: each of `lanes` threads takes `width`
// neighbours, and every lanes-th thread the same ones; the classes are dealt to chunks * (threads / lanes) walkers.
template <int width>
struct PositionTile {
  int64 outer, first, inner_count, lanes, lane, walker, walkers, block, chunk;

  DEVICE PositionTile(int64 inner_count, int64 chunks, int64 lanes) : inner_count(inner_count), lanes(lanes) {
    const int64 tiles = ceil_div(inner_count, lanes * width), each = blockDim.x / lanes;
    block = divide(blockIdx.x, chunks);
    chunk = blockIdx.x - block * chunks;
    outer = divide(block, tiles);
    first = (block - outer * tiles) * lanes * width;
    lane = threadIdx.x % lanes;
    walker = chunk * each + threadIdx.x / lanes;
    walkers = chunks * each;
  }

  // The same positions, with their classes dealt to the threads of this block alone.
  DEVICE PositionTile with_all_classes() const {
    PositionTile whole = *this;
    whole.walker = threadIdx.x / lanes;
    whole.walkers = blockDim.x / lanes;
    return whole;
  }

  DEVICE int64 inner() const { return first + lane * width; }
  DEVICE int64 positions() const { return min_of(lanes * width, inner_count - first); }

  // Calls use(classes, their logits) with `together` classes of this thread's positions at once, then one by one.
  template <int together, class Use>
  DEVICE void visit(const SCALAR* logits, int64 class_stride, int64 classes, Use use) const {
    if (inner() >= inner_count) return;
    int64 c = walker;
    for (; c + (together - 1) * walkers < classes; c += together * walkers)
      visit_classes<together>(logits, class_stride, c, use);
    for (; c < classes; c += walkers) visit_classes<1>(logits, class_stride, c, use);
  }

 private:
  template <int count, class Use>
  DEVICE void visit_classes(const SCALAR* logits, int64 class_stride, int64 c, Use use) const {
    int64 at[count];
    Vector<SCALAR, width> x[count];
#pragma unroll
    for (int k = 0; k < count; ++k) {
      at[k] = c + k * walkers;
      x[k] = load_vector<width>(logits + at[k] * class_stride);
    }
    use(at, x);
  }
};

// The sums of a tile's positions over the classes of its chunk: in `sums` [threads / lanes, lanes * width], still
// apart.
template <int width>
DEVICE void sum_positions(const PositionTile<width>& tile, const SCALAR* input, int64 outer_stride, int64 class_stride,
                          int64 inner_stride, const Targets& targets, RowSum* sums) {
  RowSum sum[width];
#pragma unroll
  for (int j = 0; j < width; ++j) sum[j] = kNoClasses;
  const SCALAR* logits = input + tile.outer * outer_stride + tile.inner() * inner_stride;
  const int64 target_offset = tile.outer * targets.outer_stride + tile.inner() * targets.inner_stride;
  tile.template visit<kInFlight>(logits, class_stride, targets.classes, [&](const auto& classes, const auto& x) {
    constexpr int count = sizeof(x) / sizeof(x[0]);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      float logit[count];
#pragma unroll
      for (int k = 0; k < count; ++k) logit[k] = to_float(x[k].values[j]);
      add_logits(sum[j], logit);
    }
    if (!targets.has_shares()) return;
#pragma unroll
    for (int k = 0; k < count; ++k) {
      Vector<SCALAR, width> q = {};
      if (targets.probabilities)
        q = load_vector<width>(targets.probabilities + target_offset + classes[k] * targets.class_stride);
      const float weight = targets.weight_of(classes[k]);
#pragma unroll
      for (int j = 0; j < width; ++j)
        add_share(sum[j], to_float(x[k].values[j]), targets.share_of(to_float(q.values[j]), weight));
    }
  });
#pragma unroll
  for (int j = 0; j < width; ++j) sums[threadIdx.x * width + j] = sum[j];
}

// What sum_positions left of one position, together.
DEVICE RowSum sum_of_position(const RowSum* sums, int64 position, int64 positions, int64 walkers) {
  RowSum sum = sums[position];
  for (int64 walker = 1; walker < walkers; ++walker) sum = Merge()(sum, sums[walker * positions + position]);
  return sum;
}
