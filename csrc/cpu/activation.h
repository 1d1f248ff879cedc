// Activations and their derivatives on vectors: float to a few ulp without tables or branches, double through std::.
//
// Gradients are written from what the forward keeps: the output for relu, sigmoid and tanh, else its pre-activation.
#pragma once

#include <cmath>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "simd.h"

namespace bigkern {

enum class Activation { none, relu, gelu, gelu_tanh, silu, sigmoid, tanh };

inline Activation activation_from_name(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "silu") return Activation::silu;
  if (name == "sigmoid") return Activation::sigmoid;
  if (name == "tanh") return Activation::tanh;
  throw std::invalid_argument("unknown activation " + name);
}

// Calls body(std::integral_constant<Activation, kind>{}): from a run-time activation to a compile-time one.
template <class Body>
void dispatch_activation(Activation kind, const Body& body) {
  using A = Activation;
  switch (kind) {
    case A::none: return body(std::integral_constant<A, A::none>{});
    case A::relu: return body(std::integral_constant<A, A::relu>{});
    case A::gelu: return body(std::integral_constant<A, A::gelu>{});
    case A::gelu_tanh: return body(std::integral_constant<A, A::gelu_tanh>{});
    case A::silu: return body(std::integral_constant<A, A::silu>{});
    case A::sigmoid: return body(std::integral_constant<A, A::sigmoid>{});
    case A::tanh: return body(std::integral_constant<A, A::tanh>{});
  }
}

constexpr double kSqrtHalf = 0.70710678118654752440;           // 1 / sqrt(2)
constexpr double kInvSqrtTwoPi = 0.39894228040143267794;       // 1 / sqrt(2 pi)
constexpr double kGeluTanhScale = 2 * 0.79788456080286535588;  // 2 sqrt(2 / pi): 1 + tanh(y) = 2 sigmoid(2y)
constexpr double kGeluTanhCubic = 0.044715;

// ---- float ----------------------------------------------------------------------------------------------------------

// sigmoid(x) and 1 - sigmoid(x), neither by a subtraction that cancels.
template <class V>
struct Gate {
  V open, closed;
};
inline Gate<vec<float>> gate(vec<float> x) {
  vec<float> decay = exp(x < 0.0f ? x : -x);
  vec<float> larger = 1.0f / (1.0f + decay);
  vec<float> smaller = decay * larger;
  return {x < 0.0f ? smaller : larger, x < 0.0f ? larger : smaller};
}
inline vec<float> sigmoid(vec<float> x) { return gate(x).open; }

// expm1(2|x|) / (expm1(2|x|) + 2): no cancellation near 0, where 1 - 2 / (exp(2x) + 1) would lose every digit.
inline vec<float> tanh(vec<float> x) {
  vec<float> magnitude = x < 0.0f ? -x : x;
  vec<float> y = 2.0f * minimum(magnitude, broadcast(10.0f));  // tanh(10) rounds to 1
  vec<float> n = round_even(y * 1.44269504088896341f);
  vec<float> r = y - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;  // ln2 in two parts, so that n * ln2 is exact enough
  // (expm1(r) - r) / r^2 on |r| <= ln2 / 2: minimax, 2.5e-10.
  vec<float> p = broadcast(0.000198458685f);
  p = p * r + 0.00139408838f;
  p = p * r + 0.00833338965f;
  p = p * r + 0.0416663587f;
  p = p * r + 0.166666657f;
  p = p * r + 0.5f;
  p = p * r * r + r;
  vec<float> power = bit_cast<vec<float>>((__builtin_convertvector(n, vec_i32) + 127) << 23);
  vec<float> expm1 = power * p + (power - 1.0f);
  vec<float> result = expm1 / (expm1 + 2.0f);
  result = x < 0.0f ? -result : result;
  return x != x ? x : result;
}

// The normal distribution at x: exp(-x^2 / 2), and the probability of a value below x.
struct Normal {
  vec<float> bell, below;
};
inline Normal normal(vec<float> x) {
  vec<float> t = x < 0.0f ? -x : x;
  vec<float> u = 1.0f / (1.0f + 0.35f * t);
  // erfc(t / sqrt(2)) / 2 = exp(-t^2 / 2) u P(u): minimax for the relative error, 3.3e-8 on all of t >= 0. Working on
  // the tail keeps gelu's relative accuracy where 1 + erf would cancel.
  vec<float> p = broadcast(-0.0291546509f);
  p = p * u + 0.144010231f;
  p = p * u - 0.255785942f;
  p = p * u + 0.159247249f;
  p = p * u - 0.0231542662f;
  p = p * u + 0.105524428f;
  p = p * u + 0.119829282f;
  p = p * u + 0.139862284f;
  p = p * u + 0.139621377f;
  vec<float> bell = exp(-0.5f * t * t);
  vec<float> tail = bell * u * p;
  return {bell, x < 0.0f ? tail : 1.0f - tail};
}

inline Gate<vec<float>> gelu_tanh_gate(vec<float> x) {
  return gate(x * (float(kGeluTanhScale) + float(kGeluTanhScale * kGeluTanhCubic) * x * x));
}

template <Activation kind>
inline vec<float> activate(vec<float> x) {
  if constexpr (kind == Activation::relu) return x <= 0.0f ? vec<float>{} : x;  // NaN stays NaN
  if constexpr (kind == Activation::gelu) return x * normal(x).below;
  if constexpr (kind == Activation::gelu_tanh) return x * gelu_tanh_gate(x).open;
  if constexpr (kind == Activation::silu) return x * sigmoid(x);
  if constexpr (kind == Activation::sigmoid) return sigmoid(x);
  if constexpr (kind == Activation::tanh) return tanh(x);
  return x;
}

// grad * activation'(x), from `saved`: the output for relu, sigmoid and tanh, else x.
template <Activation kind>
inline vec<float> activation_backward(vec<float> grad, vec<float> saved) {
  // relu selects instead of multiplying: an infinite gradient times 0 would be NaN.
  if constexpr (kind == Activation::relu) return saved <= 0.0f ? vec<float>{} : grad;
  if constexpr (kind == Activation::gelu) {
    Normal n = normal(saved);
    return grad * (n.below + saved * float(kInvSqrtTwoPi) * n.bell);
  }
  if constexpr (kind == Activation::gelu_tanh) {
    Gate<vec<float>> g = gelu_tanh_gate(saved);
    vec<float> slope = float(kGeluTanhScale) + float(3 * kGeluTanhScale * kGeluTanhCubic) * saved * saved;
    // One side of the gate is exactly 0 long before the slope overflows; a finite slope keeps 0 * inf away.
    return grad * (g.open + saved * (g.open * g.closed) * minimum(slope, broadcast(1e30f)));
  }
  if constexpr (kind == Activation::silu) {
    Gate<vec<float>> g = gate(saved);
    return grad * (g.open * (1.0f + saved * g.closed));
  }
  if constexpr (kind == Activation::sigmoid) return grad * (saved * (1.0f - saved));
  if constexpr (kind == Activation::tanh) return grad * (1.0f - saved * saved);
  return grad;
}

// ---- double ---------------------------------------------------------------------------------------------------------

inline Gate<double> gate(double x) {
  double decay = std::exp(-std::abs(x)), larger = 1 / (1 + decay), smaller = decay * larger;
  return x < 0 ? Gate<double>{smaller, larger} : Gate<double>{larger, smaller};
}
inline Gate<double> gelu_tanh_gate(double x) { return gate(x * kGeluTanhScale * (1 + kGeluTanhCubic * x * x)); }
inline double normal_below(double x) { return 0.5 * std::erfc(-x * kSqrtHalf); }

template <Activation kind>
inline double activate_one(double x) {
  if constexpr (kind == Activation::relu) return x <= 0 ? 0 : x;
  if constexpr (kind == Activation::gelu) return x * normal_below(x);
  if constexpr (kind == Activation::gelu_tanh) return x * gelu_tanh_gate(x).open;
  if constexpr (kind == Activation::silu) return x * gate(x).open;
  if constexpr (kind == Activation::sigmoid) return gate(x).open;
  if constexpr (kind == Activation::tanh) return std::tanh(x);
  return x;
}

template <Activation kind>
inline double activation_backward_one(double grad, double saved) {
  if constexpr (kind == Activation::relu) return saved <= 0 ? 0 : grad;
  if constexpr (kind == Activation::gelu)
    return grad * (normal_below(saved) + saved * kInvSqrtTwoPi * std::exp(-0.5 * saved * saved));
  if constexpr (kind == Activation::gelu_tanh) {
    Gate<double> g = gelu_tanh_gate(saved);
    double slope = kGeluTanhScale * (1 + 3 * kGeluTanhCubic * saved * saved);
    return grad * (g.open + saved * (g.open * g.closed) * std::fmin(slope, 1e300));
  }
  if constexpr (kind == Activation::silu) {
    Gate<double> g = gate(saved);
    return grad * (g.open * (1 + saved * g.closed));
  }
  if constexpr (kind == Activation::sigmoid) return grad * (saved * (1 - saved));
  if constexpr (kind == Activation::tanh) return grad * (1 - saved * saved);
  return grad;
}

template <Activation kind>
inline vec<double> activate(vec<double> x) {
  for (int lane = 0; lane < lanes<double>; ++lane) x[lane] = activate_one<kind>(x[lane]);
  return x;
}
template <Activation kind>
inline vec<double> activation_backward(vec<double> grad, vec<double> saved) {
  for (int lane = 0; lane < lanes<double>; ++lane) grad[lane] = activation_backward_one<kind>(grad[lane], saved[lane]);
  return grad;
}

// ---- both -----------------------------------------------------------------------------------------------------------

// values = act(values), for whole vectors.
template <class A>
void activate_values(Activation activation, A* values, int64_t count) {
  dispatch_activation(activation, [&](auto kind) {
    for (int64_t i = 0; i < count; i += lanes<A>) store(values + i, activate<kind>(load(values + i)));
  });
}

}  // namespace bigkern
