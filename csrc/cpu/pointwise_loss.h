// Losses that treat every element alone: one pass forward, one backward, sums in double over chunks of a fixed size.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "cross_entropy.h"
#include "dtype.h"
#include "parallel.h"

namespace bigkern {

// log(1 + u) for 0 <= u <= 1, to the last digits of small u: what 1 + u rounds off is put back by the quotient.
inline vec<float> log1p_unit(vec<float> u) {
  vec<float> sum = u + 1.0f, rounded = sum - 1.0f;
  return select(rounded == 0, u, vec<float>(xent::log_of_sum(sum) * (u / rounded)));
}
inline vec<double> log1p_unit(vec<double> u) {
  for (int lane = 0; lane < lanes<double>; ++lane) u[lane] = std::log1p(u[lane]);
  return u;
}
// log(1 + exp(-|x|))
template <class A>
inline vec<A> log1p_exp_minus(vec<A> magnitude) {
  return log1p_unit(exp(vec<A>(-magnitude)));
}

// log of a probability; NaN for 0.
inline vec<float> log_of_probability(vec<float> p) {
  const auto subnormal = p < std::numeric_limits<float>::min();  // no exponent field to read
  vec<float> scaled = select(subnormal, vec<float>(p * 0x1p24f), p);
  return xent::log_of_sum(scaled) - select(subnormal, broadcast(16.635532333438686f), vec<float>{});
}
inline vec<double> log_of_probability(vec<double> p) { return xent::log_of_sum(p); }

namespace pointwise {

constexpr int64_t kChunk = 4096;

// A vector that the elements repeat, piece by piece in the type of the sums.
template <class T>
class Period {
 public:
  explicit Period(const Tensor& tensor) : values_(tensor.as<const T>()), length_(tensor.numel()) {
    defined_ = tensor.defined() && length_ > 0;
  }
  // Elements [begin, begin + count), or null where there is no weight.
  const acc_t<T>* read(int64_t begin, int64_t count, acc_t<T>* buffer) const {
    if (!defined_) return nullptr;
    int64_t place = begin % length_;
    for (int64_t i = 0; i < count; ++i) {
      buffer[i] = to_acc(values_[place]);
      if (++place == length_) place = 0;
    }
    return buffer;
  }

 private:
  const T* values_;
  int64_t length_;
  bool defined_;
};

// What a loss sees of one vector of elements. The weights are 1 where there are none.
template <class A>
struct Elements {
  vec<A> input, target, weight, pos_weight;
};
template <class A>
struct Slopes {
  vec<A> input, target;
};

template <class T>
struct Problem {
  const T *input, *target;
  int64_t count, batch;
  std::string reduction;
  Period<T> weight, pos_weight;

  Problem(const Tensor& x, const Tensor& t, const std::string& how, const Tensor& w = {}, const Tensor& p = {})
      : input(x.as<const T>()),
        target(t.as<const T>()),
        count(x.numel()),
        batch(x.sizes[0]),
        reduction(how),
        weight(w),
        pos_weight(p) {}

  double divisor() const {
    return reduction == "mean" ? double(count) : reduction == "batchmean" ? double(batch) : 1.0;
  }

  // body(index, count, elements) on vectors of the chunk, the last of which may be partly filled (with zeros).
  template <class Body>
  void over_chunk(int64_t chunk, const Body& body) const {
    using A = acc_t<T>;
    constexpr int kLanes = lanes<A>;
    const int64_t begin = chunk * kChunk, length = std::min(kChunk, count - begin);
    A weights[kChunk], pos_weights[kChunk];
    const A *w = weight.read(begin, length, weights), *p = pos_weight.read(begin, length, pos_weights);
    Elements<A> e = {{}, {}, broadcast(A(1)), broadcast(A(1))};
    int64_t i = 0;
    for (; i + kLanes <= length; i += kLanes) {
      e.input = load(input + begin + i);
      e.target = load(target + begin + i);
      if (w) e.weight = load(w + i);
      if (p) e.pos_weight = load(p + i);
      body(begin + i, int64_t{kLanes}, e);
    }
    if (const int64_t rest = length - i) {
      e.input = load_partial(input + begin + i, rest);
      e.target = load_partial(target + begin + i, rest);
      if (w) e.weight = load_partial(w + i, rest);
      if (p) e.pos_weight = load_partial(p + i, rest);
      body(begin + i, rest, e);
    }
  }
  int64_t chunks() const { return (count + kChunk - 1) / kChunk; }
};

template <class T>
inline void store_partial_or_whole(T* to, vec<acc_t<T>> value, int64_t count) {
  if (count == lanes<acc_t<T>>)
    store(to, value);
  else
    store_partial(to, value, count);
}

template <class T, class LossOf>
void forward(const Problem<T>& problem, T* loss, const LossOf& loss_of) {
  using A = acc_t<T>;
  constexpr int kLanes = lanes<A>;
  const bool per_element = problem.reduction == "none";
  std::vector<double> partial(per_element ? 0 : problem.chunks());
  parallel_for(problem.chunks(), 4, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      vec<A> sum = {}, group = {};  // of groups of 16, so that rounding errors stay few
      problem.over_chunk(chunk, [&](int64_t i, int64_t count, const Elements<A>& e) {
        vec<A> value = loss_of(e);
        if (per_element) return store_partial_or_whole(loss + i, value, count);
        if (count < kLanes) value = select(xent::lane_numbers<A>() < broadcast(A(count)), value, vec<A>{});
        group += value;
        if (i / kLanes % 16 != 15) return;
        sum += group;
        group = vec<A>{};
      });
      if (!per_element)
        for (int lane = 0; lane < kLanes; ++lane) partial[chunk] += double(sum[lane]) + double(group[lane]);
    }
  });
  if (per_element) return;
  double total = 0;
  for (double part : partial) total += part;
  *loss = from_acc<T>(static_cast<A>(total / problem.divisor()));
}

template <class T, class SlopesOf>
void backward(const Problem<T>& problem, const T* grad_loss, T* grad_input, T* grad_target, const SlopesOf& slopes_of) {
  using A = acc_t<T>;
  const bool per_element = problem.reduction == "none";
  const vec<A> factor = broadcast(per_element ? A(1) : static_cast<A>(to_acc(*grad_loss) / problem.divisor()));
  parallel_for(problem.chunks(), 4, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk)
      problem.over_chunk(chunk, [&](int64_t i, int64_t count, const Elements<A>& e) {
        vec<A> share = !per_element        ? factor
                       : count == lanes<A> ? load(grad_loss + i)
                                           : load_partial(grad_loss + i, count);
        Slopes<A> slopes = slopes_of(e);
        store_partial_or_whole(grad_input + i, vec<A>(slopes.input * share), count);
        if (grad_target) store_partial_or_whole(grad_target + i, vec<A>(slopes.target * share), count);
      });
  });
}

}  // namespace pointwise
}  // namespace bigkern
