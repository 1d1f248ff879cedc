// cross_entropy where the positions of a class lie side by side, as in logits [N, C, height, width]: a lane is a
// position, and nothing is transposed.
#pragma once

#include <vector>

#include "cross_entropy.h"
#include "parallel.h"

namespace bigkern::xent {

template <class A>
using lane_int = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;

constexpr int64_t kMaxPositions = 512;

template <class U>
vec<acc_t<U>> load_some(const U* p, int64_t count) {
  return count == lanes<acc_t<U>> ? load(p) : load_partial(p, count);
}
template <class U>
void store_some(U* p, vec<acc_t<U>> v, int64_t count) {
  if (count == lanes<acc_t<U>>)
    store(p, v);
  else
    store_partial(p, v, count);
}

// A run of positions of one batch element, with what each asks of its classes.
template <class T>
struct PositionBlock {
  using A = acc_t<T>;
  static constexpr int kLanes = lanes<A>;
  static constexpr int kVectors = kMaxPositions / kLanes;

  const Problem<T>& problem;
  int64_t n, begin, count;

  int64_t vectors() const { return (count + kLanes - 1) / kLanes; }
  int64_t lanes_in(int64_t v) const { return std::min<int64_t>(kLanes, count - v * kLanes); }
  int64_t row(int64_t position) const { return n * problem.inner + begin + position; }

  template <class U>
  vec<acc_t<U>> read(const U* p, int64_t v) const {
    return load_some(p, lanes_in(v));
  }
  vec<A> logits(int64_t c, int64_t v) const {
    return read(problem.input + n * problem.batch_stride + c * problem.class_stride + begin + v * kLanes, v);
  }
  vec<A> masses(int64_t c, int64_t v) const {
    vec<A> mass = broadcast(problem.spread);
    if (problem.has_probabilities)
      mass += problem.own_share * read(problem.probability + n * problem.target_batch_stride +
                                           c * problem.target_class_stride + begin + v * kLanes,
                                       v);
    return mass * problem.weight_of(c);
  }
  int64_t index_target(int64_t position) const {
    return problem.index[n * problem.target_batch_stride + (begin + position) * problem.target_inner_stride];
  }
};

// Blocks depend on the shape alone, so that sums over them do not depend on the threads.
template <class T>
struct Blocks {
  const Problem<T>& problem;
  int64_t size, per_plane;

  explicit Blocks(const Problem<T>& p)
      : problem(p), size(p.rows() >= 32 * kMaxPositions ? kMaxPositions : 64), per_plane((p.inner + size - 1) / size) {}

  int64_t count() const { return problem.batch * per_plane; }
  int64_t grain() const { return std::max<int64_t>(1, 16384 / (size * std::max<int64_t>(problem.classes, 1))); }
  PositionBlock<T> operator[](int64_t i) const {
    int64_t begin = i % per_plane * size;
    return {problem, i / per_plane, begin, std::min(size, problem.inner - begin)};
  }
};

template <class U>
vec<U> vector_at(const U* values, int64_t v) {
  vec<U> vector;
  std::memcpy(&vector, values + v * lanes<U>, sizeof(vector));
  return vector;
}

// Index targets of a block as lanes; for probabilities, no position has one. Classes are compared modulo 2^32 where A
// is float, which still tells all of them apart.
template <class T>
struct BlockTargets {
  using A = acc_t<T>;
  using Int = lane_int<A>;
  Int target[kMaxPositions];  // -1: none
  A weight[kMaxPositions];    // 0 there

  BlockTargets(const PositionBlock<T>& block, Partial& partial) {
    for (int64_t i = 0; i < block.vectors() * block.kLanes; ++i) {
      target[i] = -1;
      weight[i] = 0;
      if (i >= block.count || block.problem.has_probabilities) continue;
      int64_t index = block.index_target(i);
      if (index == block.problem.ignore_index) continue;
      if (!block.problem.in_range(index)) {
        partial.refuse(index);
        continue;
      }
      target[i] = static_cast<Int>(index);
      weight[i] = block.problem.weight_of(index);
      partial.weight += weight[i];
    }
    if (block.problem.has_probabilities) partial.weight += static_cast<double>(block.count);
  }
};

template <bool kMasses, class T>
struct BlockSums {
  using A = acc_t<T>;
  static constexpr int kVectors = PositionBlock<T>::kVectors;
  LaneSums<A, kMasses> sums[kVectors];
  vec<A> own_logit[kVectors];  // the logit of the position's index target

  BlockSums(const PositionBlock<T>& block, const BlockTargets<T>& targets) {
    for (int64_t v = 0; v < block.vectors(); ++v) own_logit[v] = vec<A>{};
    in_groups(block.problem.classes, [&](int64_t first, auto group) {
      constexpr int kCount = decltype(group)::value;
      for (int64_t v = 0; v < block.vectors(); ++v) {
        auto target = vector_at(targets.target, v);
        vec<A> values[kCount], mass[kCount], own = own_logit[v];
        for (int k = 0; k < kCount; ++k) {
          values[k] = block.logits(first + k, v);
          if constexpr (kMasses) mass[k] = block.masses(first + k, v);
          // Picked up on the way: looking it up later would miss the cache where planes lie a power of two apart.
          own = select(target == static_cast<lane_int<A>>(first + k), values[k], own);
        }
        own_logit[v] = own;
        sums[v].include(values, mass);
      }
    });
  }
};

// ---- forward ------------------------------------------------------------------------------------------------------

template <bool kMasses, class T>
void forward_block(const PositionBlock<T>& block, T* loss, acc_t<T>* lse, Partial& partial) {
  using A = acc_t<T>;
  constexpr int kLanes = lanes<A>;
  BlockTargets<T> targets(block, partial);
  BlockSums<kMasses, T> block_sums(block, targets);
  vec<A> total = {};
  for (int64_t v = 0; v < block.vectors(); ++v) {
    const auto& sums = block_sums.sums[v];
    int64_t row = block.row(v * kLanes), inside = block.lanes_in(v);
    vec<A> log_sum = log_of_sum(sums.sum_exp);
    vec<A> position_loss =
        block.problem.own_share * vector_at(targets.weight, v) * ((sums.max - block_sums.own_logit[v]) + log_sum);
    auto counts = vector_at(targets.target, v) >= 0;
    if (block.problem.has_probabilities) {
      position_loss = vec<A>{};
      counts = lane_numbers<A>() < broadcast(static_cast<A>(inside));
    }
    if constexpr (kMasses) position_loss += sums.gap + sums.mass * log_sum;
    position_loss = select(counts, position_loss, vec<A>{});
    total += position_loss;
    store_some(lse + row, vec<A>(sums.max + log_sum), inside);
    if (block.problem.reduction == Reduction::none) store_some(loss + row, position_loss, inside);
  }
  for (int lane = 0; lane < kLanes; ++lane) partial.loss += total[lane];
}

template <class T>
std::vector<Partial> forward_planes(const Problem<T>& problem, T* loss, acc_t<T>* lse) {
  Blocks<T> blocks(problem);
  std::vector<Partial> partials(blocks.count());
  auto forward = problem.has_masses() ? &forward_block<true, T> : &forward_block<false, T>;
  parallel_for(blocks.count(), blocks.grain(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) forward(blocks[i], loss, lse, partials[i]);
  });
  return partials;
}

// ---- backward -----------------------------------------------------------------------------------------------------

// As RowGradient, for each position of a block.
template <class A>
struct BlockGradient {
  A shift[kMaxPositions], probability_scale[kMaxPositions], scale[kMaxPositions], own_scale[kMaxPositions];
  A log_sum[kMaxPositions];
};

template <bool kMasses, class T, class ScaleOf>
void gradient_of_block(const PositionBlock<T>& block, const BlockTargets<T>& targets, const ScaleOf& scale_of,
                       const acc_t<T>* lse, BlockGradient<acc_t<T>>& gradient) {
  using A = acc_t<T>;
  const Problem<T>& problem = block.problem;
  bool imprecise = false;
  for (int64_t i = 0; i < block.vectors() * block.kLanes; ++i) {
    bool counts = i < block.count && (problem.has_probabilities || targets.target[i] >= 0);
    double scale = counts ? scale_of(block.row(i)) : 0;
    gradient.scale[i] = static_cast<A>(scale);
    gradient.own_scale[i] = static_cast<A>(scale * problem.own_share * targets.weight[i]);
    gradient.probability_scale[i] = gradient.own_scale[i];
    gradient.shift[i] = i < block.count ? lse[block.row(i)] : 0;
    gradient.log_sum[i] = 0;
    imprecise |= lse_is_imprecise<T>(gradient.shift[i]);
  }
  if (!kMasses && !imprecise) return;
  BlockSums<kMasses, T> block_sums(block, targets);
  for (int64_t v = 0; v < block.vectors(); ++v) {
    const auto& sums = block_sums.sums[v];
    vec<A> log_sum = log_of_sum(sums.sum_exp);
    for (int lane = 0; lane < block.kLanes; ++lane) {
      int64_t i = v * block.kLanes + lane;
      if (kMasses) gradient.probability_scale[i] += gradient.scale[i] * sums.mass[lane];
      gradient.probability_scale[i] /= sums.sum_exp[lane];
      gradient.shift[i] = sums.max[lane];
      gradient.log_sum[i] = log_sum[lane];
    }
  }
}

template <bool kMasses, class T, class ScaleOf>
void backward_block(const PositionBlock<T>& block, const ScaleOf& scale_of, const acc_t<T>* lse, T* grad_input,
                    T* grad_target) {
  using A = acc_t<T>;
  const Problem<T>& problem = block.problem;
  Partial unused;
  BlockTargets<T> targets(block, unused);
  BlockGradient<A> gradient;
  gradient_of_block<kMasses>(block, targets, scale_of, lse, gradient);
  for (int64_t c = 0; c < problem.classes; ++c) {
    int64_t start = (block.n * problem.classes + c) * problem.inner + block.begin;
    for (int64_t v = 0; v < block.vectors(); ++v) {
      vec<A> x = block.logits(c, v), shift = vector_at(gradient.shift, v);
      vec<A> grad = vector_at(gradient.probability_scale, v) * exp_nonpositive(vec<A>(x - shift));
      auto is_target = vector_at(targets.target, v) == static_cast<lane_int<A>>(c);
      grad -= select(is_target, vector_at(gradient.own_scale, v), vec<A>{});
      vec<A> scale = vector_at(gradient.scale, v);
      if constexpr (kMasses) grad -= scale * block.masses(c, v);
      store_some(grad_input + start + v * block.kLanes, grad, block.lanes_in(v));
      if (!grad_target) continue;
      vec<A> minus_log_p = (shift - x) + vector_at(gradient.log_sum, v);
      store_some(grad_target + start + v * block.kLanes,
                 vec<A>(scale * (problem.own_share * problem.weight_of(c)) * minus_log_p), block.lanes_in(v));
    }
  }
}

template <class T, class ScaleOf>
void backward_planes(const Problem<T>& problem, const ScaleOf& scale_of, const acc_t<T>* lse, T* grad_input,
                     T* grad_target) {
  Blocks<T> blocks(problem);
  auto backward = problem.has_masses() ? &backward_block<true, T, ScaleOf> : &backward_block<false, T, ScaleOf>;
  parallel_for(blocks.count(), blocks.grain(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) backward(blocks[i], scale_of, lse, grad_input, grad_target);
  });
}

}  // namespace bigkern::xent
