// Updates over lists of tensors: one launch for all tensors of one dtype.
//
// A launch gets two small tables. `addresses` [lists, tensors] points at the tensors: parameters, gradients, float32
// masters of parameters, state. `plan` [3, blocks] says which tensor a block works on, where it starts and how long the
// tensor is. Bound by memory: every operand is read once and written once, 16 bytes at a time.
//
// MASTER: there are masters, which are what is updated; the state is then float32 too.
#pragma once

#include <floats.cuh>

#ifndef SCALAR
#define SCALAR float
#endif
#ifndef MASTER
#define MASTER 0
#endif

constexpr int kBlockElements = 4096;
constexpr int kUpdateThreads = 256;
constexpr int kWidth = kWidest<SCALAR>;
// Rows of the table of addresses.
constexpr int kParam = 0, kGrad = 1, kMaster = 2, kState = 3;

template <class T, bool otherwise>
struct StateType {
  using type = T;
};
template <class T>
struct StateType<T, true> {
  using type = float;
};
using State = StateType<SCALAR, bool(MASTER)>::type;

// The tensors that this block updates, and which of their elements.
struct Block {
  const uint64* addresses;
  int64 tensors, tensor, first, end;

  DEVICE Block(const uint64* addresses, int64 tensors, const int64* plan) : addresses(addresses), tensors(tensors) {
    const int64 blocks = gridDim.x;
    tensor = plan[blockIdx.x];
    first = plan[blocks + blockIdx.x];
    end = min_of(first + kBlockElements, plan[2 * blocks + blockIdx.x]);
  }

  template <class T>
  DEVICE T* operand(int row) const {
    return reinterpret_cast<T*>(addresses[row * tensors + tensor]);
  }

  // Calls update(index, Width<width>) for this thread's elements, `width` at a time. `wide`: all tensors begin at
  // addresses of 16 bytes.
  template <class Update>
  DEVICE void visit(bool wide, Update update) const;
};

template <int width>
struct Width {
  static constexpr int value = width;
};

template <class Update>
DEVICE void Block::visit(bool wide, Update update) const {
  const int64 vectors_end = wide ? first + (end - first) / kWidth * kWidth : first;
  for (int64 i = first + threadIdx.x * kWidth; i < vectors_end; i += kUpdateThreads * kWidth)
    update(i, Width<kWidth>());
  for (int64 i = vectors_end + threadIdx.x; i < end; i += kUpdateThreads) update(i, Width<1>());
}

// The gradient as an optimizer uses it.
template <int width>
DEVICE void load_gradient(float (&values)[width], const SCALAR* grad, float factor) {
  load_floats(values, grad);
#pragma unroll
  for (int i = 0; i < width; ++i) values[i] *= factor;
}

// What multiplies gradients; grad_factor may be null.
DEVICE float gradient_factor(const float* grad_factor, bool maximize) {
  const float factor = grad_factor == nullptr ? 1.0f : *grad_factor;
  return maximize ? -factor : factor;
}

// A step that is skipped changes nothing but what zero_grad asks for.
DEVICE bool is_taken(const float* found_inf) { return found_inf == nullptr || *found_inf == 0; }

// The step count of the tensor, a float or a double.
DEVICE float steps_of(const Block& block, int row, bool is_double) {
  return is_double ? float(*block.operand<const double>(row)) : *block.operand<const float>(row);
}
