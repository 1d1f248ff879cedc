// What the two layouts of cross_entropy share: the arguments as typed pointers, exp and log for their ranges, and sums
// over the classes that start anywhere and can be merged.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "../tensor.h"
#include "simd.h"

namespace bigkern::xent {

enum class Reduction { none, mean, sum };

// The arguments of forward and backward: logits [batch, classes, inner], and what every class is worth.
template <class T>
struct Problem {
  using A = acc_t<T>;
  const T* input;
  int64_t batch, classes, inner;
  int64_t batch_stride, class_stride, inner_stride;
  // Index targets [batch, inner], or probabilities [batch, classes, inner]; the other pointer is null.
  const int64_t* index = nullptr;
  const T* probability = nullptr;
  bool has_probabilities;  // a null pointer does not say: that of an empty tensor is null too
  int64_t target_batch_stride, target_class_stride = 0, target_inner_stride;
  std::vector<A> weight;  // [classes], or empty: all 1
  int64_t ignore_index;
  A own_share, spread;  // 1 - label_smoothing, label_smoothing / classes
  Reduction reduction;

  Problem(const Tensor& logits, const Tensor& target, const Tensor& weight_tensor, int64_t ignored,
          const std::string& reduction_name, double label_smoothing)
      : input(logits.as<const T>()),
        batch(logits.sizes[0]),
        classes(logits.sizes[1]),
        inner(logits.sizes[2]),
        batch_stride(logits.strides[0]),
        class_stride(logits.strides[1]),
        inner_stride(logits.strides[2]),
        has_probabilities(target.dtype != DType::int64),
        target_batch_stride(target.strides[0]),
        target_inner_stride(target.strides[target.ndim - 1]),
        ignore_index(ignored),
        own_share(static_cast<A>(1 - label_smoothing)),
        spread(static_cast<A>(label_smoothing / static_cast<double>(std::max<int64_t>(classes, 1)))),
        reduction(reduction_name == "mean"  ? Reduction::mean
                  : reduction_name == "sum" ? Reduction::sum
                                            : Reduction::none) {
    if (has_probabilities) {
      probability = target.as<const T>();
      target_class_stride = target.strides[1];
    } else {
      index = target.as<const int64_t>();
    }
    if (weight_tensor.defined()) copy_weight(weight_tensor);
  }

  int64_t rows() const { return batch * inner; }
  // True where classes other than an index target's own have a share in the loss.
  bool has_masses() const { return has_probabilities || spread > 0; }
  A weight_of(int64_t c) const { return weight.empty() ? A(1) : weight[c]; }
  bool in_range(int64_t target) const { return target >= 0 && target < classes; }
  // Vectors run over positions where those lie side by side, and over classes everywhere else.
  bool positions_are_contiguous() const {
    return classes > 0 && inner > 1 && inner_stride == 1 && class_stride != 1 &&
           (!has_probabilities || target_inner_stride == 1);
  }

 private:
  void copy_weight(const Tensor& tensor);
};

template <class T>
void Problem<T>::copy_weight(const Tensor& tensor) {
  weight.resize(classes);
  auto copy = [&](auto* values) {
    for (int64_t c = 0; c < classes; ++c) weight[c] = static_cast<A>(to_acc(values[c * tensor.strides[0]]));
  };
  switch (tensor.dtype) {
    case DType::float64: return copy(tensor.as<const double>());
    case DType::float16: return copy(tensor.as<const half>());
    case DType::bfloat16: return copy(tensor.as<const bfloat16>());
    default: return copy(tensor.as<const float>());
  }
}

// ---- exp and log --------------------------------------------------------------------------------------------------

// exp for x <= 0 (or a rounding error above), to about 1 ulp: fewer steps than the general one. Below the normal range
// the result is 0; NaN stays NaN. Coefficients: minimax over |r| <= ln2 / 2.
inline vec<float> exp_nonpositive(vec<float> x) {
  vec<float> magic = broadcast(12582912.0f);
  vec<float> n = (x * 1.44269504088896341f + magic) - magic;
  vec<float> r = x - n * 0.69314718055994531f;
  vec<float> p = broadcast(1.381432059e-3f);
  p = p * r + 8.368851154e-3f;
  p = p * r + 4.166840109e-2f;
  p = p * r + 1.666651952e-1f;
  p = p * r + 4.999999337e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  __mmask16 normal = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.33654475f), _CMP_NLT_UQ);
  return (vec<float>)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)n);
#else
  vec_i32 exponent = __builtin_convertvector(n, vec_i32);
  vec<float> scaled = p * bit_cast<vec<float>>((exponent + 127) << 23);
  scaled = x < -87.33654475f ? vec<float>{} : scaled;
  return x != x ? x : scaled;
#endif
}
inline vec<double> exp_nonpositive(vec<double> x) { return exp(x); }

// log of a sum that is a normal number, 0 (gives NaN, PyTorch's answer for rows of nothing but -inf) or NaN.
inline vec<float> log_of_sum(vec<float> x) {
  vec_i32 bits = bit_cast<vec_i32>(x);
  // Mantissa in [sqrt(1/2), sqrt(2)), where the series converges fastest.
  vec_i32 exponent = (bits - 0x3f3504f3) >> 23;
  vec<float> f = bit_cast<vec<float>>(bits - (exponent << 23)) - 1.0f;
  vec<float> e = __builtin_convertvector(exponent, vec<float>);
  vec<float> p = broadcast(6.746643481e-2f);
  for (float coefficient : {-1.167565631e-1f, 1.188816339e-1f, -1.240558831e-1f, 1.421955214e-1f, -1.666799588e-1f,
                            2.000211867e-1f, -2.500000960e-1f, 3.333331260e-1f})
    p = p * f + coefficient;
  vec<float> f2 = f * f;
  vec<float> small = p * f * f2 + e * -2.12194440e-4f;
  vec<float> log = (f + (small - f2 * 0.5f)) + e * 0.693359375f;
  return x > 0 ? log : broadcast(std::numeric_limits<float>::quiet_NaN());
}
inline double log_of_sum(double x) { return x > 0 ? std::log(x) : std::numeric_limits<double>::quiet_NaN(); }
inline vec<double> log_of_sum(vec<double> x) {
  for (int lane = 0; lane < lanes<double>; ++lane) x[lane] = log_of_sum(double{x[lane]});
  return x;
}

// ---- sums over classes --------------------------------------------------------------------------------------------

template <class A>
constexpr A kLowest = std::numeric_limits<A>::lowest();

// How far a maximum rose, kept finite: 0 * inf would turn an empty sum into NaN.
template <class V>
inline V rise(V from, V to, V largest) {
  return minimum(V(to - from), largest);
}

// For each lane, over the classes seen so far:
//   max      the largest logit (the lowest finite number before the first, so that max - max is never inf - inf)
//   sum_exp  sum of exp(x - max)
//   mass     sum of the masses m
//   gap      sum of m * (max - x)
// so that  -sum m * log p = gap + mass * log(sum_exp), without a difference of large numbers.
template <class A, bool kMasses>
struct LaneSums {
  vec<A> max = broadcast(kLowest<A>), sum_exp = {}, mass = {}, gap = {};

  template <int kCount>
  void include(const vec<A> (&x)[kCount], const vec<A> (&m)[kCount]) {
    vec<A> larger = max;
    for (int k = 0; k < kCount; ++k) larger = maximum(x[k], larger);  // a NaN loses here, and shows in the sum
    vec<A> group = {};
    for (int k = 0; k < kCount; ++k) group += exp_nonpositive(vec<A>(x[k] - larger));
    sum_exp = sum_exp * exp_nonpositive(vec<A>(max - larger)) + group;
    if constexpr (kMasses) {
      gap += mass * rise(max, larger, broadcast(-kLowest<A>));
      for (int k = 0; k < kCount; ++k) {
        gap += m[k] * (larger - x[k]);
        mass += m[k];
      }
    }
    max = larger;
  }
};

// Calls body(index, integral_constant<group size>) over [0, count), in groups of 8, 4 and 1.
template <class Body>
inline void in_groups(int64_t count, const Body& body) {
  int64_t k = 0;
  for (; k + 8 <= count; k += 8) body(k, std::integral_constant<int, 8>{});
  for (; k + 4 <= count; k += 4) body(k, std::integral_constant<int, 4>{});
  for (; k < count; ++k) body(k, std::integral_constant<int, 1>{});
}

template <class A>
inline vec<A> lane_numbers() {
  vec<A> numbers;
  for (int lane = 0; lane < lanes<A>; ++lane) numbers[lane] = static_cast<A>(lane);
  return numbers;
}

// The same four sums for one row, in double: pieces of a long row merge without losing digits.
struct RowSums {
  double max = kLowest<double>, sum_exp = 0, mass = 0, gap = 0;

  double log_sum() const { return log_of_sum(sum_exp); }

  void include(const RowSums& other) {
    double larger = std::max(max, other.max), limit = -kLowest<double>;
    sum_exp = sum_exp * std::exp(max - larger) + other.sum_exp * std::exp(other.max - larger);
    gap += other.gap + mass * rise(max, larger, limit) + other.mass * rise(other.max, larger, limit);
    mass += other.mass;
    max = larger;
  }
};

template <class A, bool kMasses>
inline RowSums sums_over_lanes(const LaneSums<A, kMasses>& lane_sums) {
  RowSums row;
  A largest = reduce_max(lane_sums.max);
  vec<A> scaled = lane_sums.sum_exp * exp_nonpositive(vec<A>(lane_sums.max - largest));
  row.max = largest;
  for (int lane = 0; lane < lanes<A>; ++lane) row.sum_exp += scaled[lane];
  if constexpr (kMasses)
    for (int lane = 0; lane < lanes<A>; ++lane) {
      double mass = lane_sums.mass[lane];
      row.mass += mass;
      row.gap += lane_sums.gap[lane] + mass * rise<double>(lane_sums.max[lane], largest, -kLowest<double>);
    }
  return row;
}

// exp(x - lse) inherits lse's rounding error, which grows with |lse| and, next to 1, hides a confident prediction's
// whole gradient. Then the sums are taken anew, from a row that is in the cache or soon will be. 16-bit results show
// none of it while |lse| is within reason.
template <class T>
inline bool lse_is_imprecise(acc_t<T> lse) {
  return sizeof(T) == sizeof(acc_t<T>) || std::abs(lse) > 4096;
}

// ---- results ------------------------------------------------------------------------------------------------------

// What one chunk of rows adds to the loss; chunks depend on the shape alone, so that the sum does not on the threads.
struct Partial {
  double loss = 0, weight = 0;
  bool has_bad_target = false;
  int64_t bad_target = 0;

  void refuse(int64_t target) {
    if (!has_bad_target) bad_target = target;
    has_bad_target = true;
  }
};

}  // namespace bigkern::xent
