// The activations and their derivatives in fp32, chosen at run time by a number that is the same for all threads.
//
// bigkern/cuda/linear_act.py counts them in this order. Gradients are written from what the forward keeps: its output
// for relu, sigmoid and tanh, else its pre-activation.
#pragma once

#include <common.cuh>

enum Activation { kNone = 0, kRelu = 1, kGelu = 2, kGeluTanh = 3, kSilu = 4, kSigmoid = 5, kTanh = 6 };

constexpr float kSqrtHalf = 0.70710678f;
constexpr float kInvSqrtTwoPi = 0.39894228f;
constexpr float kGeluTanhScale = 1.59576912f;  // 2 sqrt(2 / pi): 1 + tanh(y) = 2 sigmoid(2y)
constexpr float kGeluTanhCubic = 0.044715f;

// sigmoid(x) and 1 - sigmoid(x), neither by a subtraction that cancels or a power that overflows.
struct Gate {
  float open, closed;
};

DEVICE Gate gate(float x) {
  float decay = expf(-fabsf(x)), larger = 1.0f / (1.0f + decay), smaller = decay * larger;
  return x < 0.0f ? Gate{smaller, larger} : Gate{larger, smaller};
}

DEVICE float normal_below(float x) { return 0.5f * (1.0f + erff(x * kSqrtHalf)); }

DEVICE Gate gelu_tanh_gate(float x) { return gate(x * (kGeluTanhScale + kGeluTanhScale * kGeluTanhCubic * x * x)); }

template <int count, class Function>
DEVICE void for_each(float (&values)[count], Function function) {
#pragma unroll
  for (int i = 0; i < count; ++i) values[i] = function(values[i], i);
}

// z = act(z); one switch for all of them.
template <int count>
DEVICE void apply_activation(float (&z)[count], int activation) {
  switch (activation) {
    case kRelu:
      return for_each(z, [](float x, int) { return x < 0.0f ? 0.0f : x; });  // a maximum would turn NaN into 0
    case kGelu: return for_each(z, [](float x, int) { return x * normal_below(x); });
    case kGeluTanh: return for_each(z, [](float x, int) { return x * gelu_tanh_gate(x).open; });
    case kSilu: return for_each(z, [](float x, int) { return x * gate(x).open; });
    case kSigmoid: return for_each(z, [](float x, int) { return gate(x).open; });
    case kTanh: return for_each(z, [](float x, int) { return tanhf(x); });
  }
}

// gradient *= act'(z), from what the forward saved.
template <int count>
DEVICE void apply_activation_backward(float (&gradient)[count], const float (&saved)[count], int activation) {
  switch (activation) {
    case kRelu:  // selects: an infinite gradient times 0 would be NaN
      return for_each(gradient, [&](float g, int i) { return saved[i] <= 0.0f ? 0.0f : g; });
    case kGelu:
      return for_each(gradient, [&](float g, int i) {
        float x = saved[i];
        return g * (normal_below(x) + x * (kInvSqrtTwoPi * expf(-0.5f * x * x)));
      });
    case kGeluTanh:
      return for_each(gradient, [&](float g, int i) {
        float x = saved[i];
        Gate y = gelu_tanh_gate(x);
        // One side of the gate is 0 long before the slope overflows; a finite slope keeps 0 * inf away.
        float slope = fminf(kGeluTanhScale + 3.0f * kGeluTanhScale * kGeluTanhCubic * x * x, 1e30f);
        return g * (y.open + x * (y.open * y.closed) * slope);
      });
    case kSilu:
      return for_each(gradient, [&](float g, int i) {
        Gate y = gate(saved[i]);
        return g * (y.open * (1.0f + saved[i] * y.closed));
      });
    case kSigmoid: return for_each(gradient, [&](float g, int i) { return g * (saved[i] * (1.0f - saved[i])); });
    case kTanh: return for_each(gradient, [&](float g, int i) { return g * (1.0f - saved[i] * saved[i]); });
  }
}
