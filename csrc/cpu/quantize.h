// Symmetric int8 quantization of one run of numbers: shared by quantize and by int8_linear's rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "simd.h"

namespace bigkern {

// The smallest interval around 0 that holds every value seen; `finite` turns false at the first NaN or infinity.
template <class A>
struct Range {
  A lo = 0, hi = 0;
  bool finite = true;

  void include(A x) {
    lo = std::min(lo, x);
    hi = std::max(hi, x);
    finite = finite && std::abs(x) <= std::numeric_limits<A>::max();
  }
  void include(const Range& other) {
    lo = std::min(lo, other.lo);
    hi = std::max(hi, other.hi);
    finite = finite && other.finite;
  }
};

template <class T>
Range<acc_t<T>> range_of(const T* values, int64_t count, int64_t stride) {
  using A = acc_t<T>;
  Range<A> range;
  int64_t i = 0;
  if (stride == 1) {
    constexpr int kLanes = lanes<A>;
    vec<A> lo = {}, hi = {}, excess = {};
    for (; i + kLanes <= count; i += kLanes) {
      vec<A> x = load(values + i);
      lo = minimum(x, lo);
      hi = maximum(x, hi);
      excess += x - x;  // 0 for finite x, NaN otherwise; NaN stays
    }
    range.lo = -reduce_max(-lo);
    range.hi = reduce_max(hi);
    range.finite = reduce_add(excess) == 0 && range.lo >= -std::numeric_limits<A>::max() &&
                   range.hi <= std::numeric_limits<A>::max();
  }
  for (; i < count; ++i) range.include(to_acc(values[i * stride]));
  return range;
}

// q = (x / scale rounded half to even) + zero_point, clamped to [lowest, 127].
template <class A>
struct QuantizeParams {
  A scale = 1;
  int32_t zero_point = 0;
  int32_t lowest = -127;
};

template <class A>
QuantizeParams<A> symmetric_params(const Range<A>& range) {
  A amax = std::max(-range.lo, range.hi);
  QuantizeParams<A> params;
  if (!range.finite)
    params.scale = std::numeric_limits<A>::quiet_NaN();
  else if (amax > 0)
    params.scale = std::max(amax / 127, std::numeric_limits<A>::min());  // a subnormal scale would lose its digits
  return params;
}

template <class A>
QuantizeParams<A> affine_params(const Range<A>& range) {
  QuantizeParams<A> params;
  params.lowest = -128;
  // Halving first: hi - lo may overflow where neither end does.
  A width = (range.hi / 2 - range.lo / 2) / 127.5;
  if (!range.finite) {
    params.scale = std::numeric_limits<A>::quiet_NaN();
  } else if (width > 0) {
    params.scale = std::max(width, std::numeric_limits<A>::min());
    A exact = A(-128) - range.lo / params.scale;
    params.zero_point = static_cast<int32_t>(std::min<A>(127, std::max<A>(-128, std::nearbyint(exact))));
  }
  return params;
}

template <class T>
inline int8_t quantize_one(T x, const QuantizeParams<acc_t<T>>& params) {
  using A = acc_t<T>;
  if (params.scale != params.scale) return 0;
  A quotient = std::nearbyint(to_acc(x) / params.scale) + A(params.zero_point);
  return static_cast<int8_t>(std::min<A>(127, std::max<A>(A(params.lowest), quotient)));
}

// Writes `count` quantized values with unit stride; the input's stride is free.
template <class T>
void quantize_run(const T* values, int64_t count, int64_t stride, const QuantizeParams<acc_t<T>>& params,
                  int8_t* qvalues) {
  if (params.scale != params.scale) {
    std::memset(qvalues, 0, static_cast<size_t>(count));
    return;
  }
  int64_t i = 0;
  if constexpr (std::is_same_v<acc_t<T>, float>) {
    constexpr int kLanes = lanes<float>;
    if (stride == 1) {
      vec<float> lowest = broadcast(float(params.lowest)), highest = broadcast(127.0f);
      for (; i + kLanes <= count; i += kLanes) {
        vec<float> q = round_even(load(values + i) / params.scale) + float(params.zero_point);
        vec_i8 narrow =
            __builtin_convertvector(__builtin_convertvector(minimum(maximum(q, lowest), highest), vec_i32), vec_i8);
        std::memcpy(qvalues + i, &narrow, sizeof(narrow));
      }
    }
  }
  for (; i < count; ++i) qvalues[i] = quantize_one(values[i * stride], params);
}

}  // namespace bigkern
