// What lstm, gru and rnn share: the loop over time, with the weight packed once for all steps.
//
// A step multiplies the left operand (the hidden states; in the backward, the gates' gradients) by the weight, tile by
// tile, and hands the sums to a cell, which computes the next step's left operand. Sequences do not depend on one
// another: where there are enough of them, each thread runs its own through all steps without waiting for another's.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../tensor.h"
#include "simd.h"

namespace bigkern {

// Some sequences times some hidden units of one step.
template <class A>
struct RecurrentTile {
  int64_t step;  // 0, 1, ... in the order of processing
  int64_t row, rows;
  int64_t unit, units;
  const A* sums;  // [rows][sums_pitch]: gate g of the tile's unit u stands at g * lanes<A> + u
  int64_t sums_pitch;
  const A* left;  // this step's left operand from `row` on; null: there was none, and the sums are 0
  A* next;        // the next step's
  int64_t pitch;
};

template <class A>
class RecurrentCell {
 public:
  virtual void run(const RecurrentTile<A>& tile) const = 0;

 protected:
  ~RecurrentCell() = default;
};

// One step per time: the first left operand is h0 [batch, hidden], and the products are with weight_hh
// [gates * hidden, hidden] transposed. With several gates a tile has at most lanes<A> units.
template <class A>
void run_recurrence(const Tensor& weight_hh, const Tensor& h0, int64_t length, const RecurrentCell<A>& cell);

// One step per time and one more: the first has sums of 0, the products are with weight_hh itself.
template <class A>
void run_recurrence_backward(const Tensor& weight_hh, int64_t batch, int64_t length, const RecurrentCell<A>& cell);

// ---- what cells read and write --------------------------------------------------------------------------------------

template <class T>
inline vec<acc_t<T>> load_units(const T* from, int64_t count) {
  return count >= lanes<acc_t<T>> ? load(from) : load_partial(from, count);
}
template <class T>
inline void store_units(T* to, vec<acc_t<T>> v, int64_t count) {
  count >= lanes<acc_t<T>> ? store(to, v) : store_partial(to, v, count);
}

template <class T>
__attribute__((noinline)) vec<acc_t<T>> gather_units(const T* from, int64_t stride, int64_t count) {
  vec<acc_t<T>> v = {};
  for (int64_t i = 0; i < std::min<int64_t>(count, lanes<acc_t<T>>); ++i) v[i] = to_acc(from[i * stride]);
  return v;
}

// A [length, batch, features], [batch, features] or [features] tensor with any strides.
template <class T>
struct UnitReader {
  const T* data;
  int64_t time_stride = 0, row_stride = 0, stride = 0;

  explicit UnitReader(const Tensor& tensor) : data(tensor.as<const T>()) {
    if (!tensor.defined()) return;
    stride = tensor.strides[tensor.ndim - 1];
    if (tensor.ndim > 1) row_stride = tensor.strides[tensor.ndim - 2];
    if (tensor.ndim > 2) time_stride = tensor.strides[0];
  }
  vec<acc_t<T>> load(int64_t time, int64_t row, int64_t unit, int64_t count) const {
    const T* from = data + time * time_stride + row * row_stride + unit * stride;
    return stride == 1 ? load_units(from, count) : gather_units(from, stride, count);
  }
};

// Which time a step stands at, and which sequences have begun or not ended there.
struct Clock {
  int64_t length;
  bool reverse;
  const int64_t* lengths;  // null: all as long as the tensor
  int64_t lengths_stride;

  Clock(int64_t length, bool reverse, const Tensor& lengths)
      : length(length),
        reverse(reverse),
        lengths(lengths.as<const int64_t>()),
        lengths_stride(lengths.defined() ? lengths.strides[0] : 0) {}

  int64_t time(int64_t step) const { return reverse ? length - 1 - step : step; }
  int64_t backward_time(int64_t step) const { return reverse ? step : length - 1 - step; }
  int64_t length_of(int64_t row) const { return lengths ? std::min(lengths[row * lengths_stride], length) : length; }
  // Whether the state before `time` is the initial one.
  bool is_first(int64_t row, int64_t time) const { return time == (reverse ? length_of(row) - 1 : 0); }
  int64_t time_before(int64_t time) const { return reverse ? time + 1 : time - 1; }
};

// The rows and vectors of a tile: body(r, u, count), with u counted from the tile's first unit.
template <class A, class Body>
inline void for_each_vector(const RecurrentTile<A>& tile, const Body& body) {
  for (int64_t r = 0; r < tile.rows; ++r)
    for (int64_t u = 0; u < tile.units; u += lanes<A>) body(r, u, std::min<int64_t>(lanes<A>, tile.units - u));
}

}  // namespace bigkern
