// Matrix products whose finished tiles go to an object chosen at run time: one product per dtype serves all uses.
#pragma once

#include "gemm.h"

namespace bigkern {

// An epilogue of gemm: `sums` holds whole vectors, also where cols is no multiple of one.
template <class A>
struct TileSink {
  virtual void operator()(int64_t row, int64_t col, int64_t rows, int64_t cols, const A* sums, int64_t pitch) const = 0;

 protected:
  ~TileSink() = default;
};

// output[row, col] = factor * sums + bias[col], or added to what is there.
template <class T>
struct StoreSink final : TileSink<acc_t<T>> {
  using A = acc_t<T>;
  T* output;
  int64_t row_length;
  const A* bias = nullptr;
  A factor = 1;
  bool add = false;

  StoreSink(T* to, int64_t length) : output(to), row_length(length) {}

  void operator()(int64_t row, int64_t col, int64_t rows, int64_t cols, const A* sums, int64_t pitch) const override {
    const A* shift = bias ? bias + col : nullptr;
    for (int64_t r = 0; r < rows; ++r)
      store_row(output + (row + r) * row_length + col, sums + r * pitch, shift, factor, cols, add);
  }

  static void store_row(T* to, const A* sums, const A* bias, A factor, int64_t cols, bool add) {
    constexpr int kLanes = lanes<A>;
    int64_t c = 0;
    for (; c + kLanes <= cols; c += kLanes) {
      vec<A> value = load(sums + c) * factor;
      if (bias) value += load(bias + c);
      if (add) value += load(to + c);
      store(to + c, value);
    }
    if (const int64_t rest = cols - c) {
      vec<A> value = load_partial(sums + c, rest) * factor;
      if (bias) value += load_partial(bias + c, rest);
      if (add) value += load_partial(to + c, rest);
      store_partial(to + c, value, rest);
    }
  }
};

// sink(A B), on all threads; a is [M, K], b is [K, N].
template <class T>
void product(const Matrix<T>& a, const Matrix<T>& b, const TileSink<acc_t<T>>& sink) {
  with_reader<T>([&](auto reader) { gemm_packed<decltype(reader)>(a, b, sink); });
}

// A rectangle of it, on the calling thread alone.
template <class T>
void product_of_rectangle(const Matrix<T>& a, const Matrix<T>& b, const Range2d& range,
                          const TileSink<acc_t<T>>& sink) {
  with_reader<T>([&](auto reader) {
    using Reader = decltype(reader);
    using Operand = MatrixOperand<Reader, T>;
    Operand rows(a), cols(transposed(b));
    RectangleProduct<typename Reader::packed, Operand, Operand, TileSink<acc_t<T>>>(rows, cols, range, sink).run();
  });
}

}  // namespace bigkern
