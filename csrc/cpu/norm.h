// What layer_norm, rms_norm and add_layer_norm share: rows in pieces, sums over a piece, and the parameters.
//
// A row is cut into pieces of kPiece columns, which stay in the first-level cache, and the sums of pieces are merged in
// one order. Whether threads share out the rows or the pieces then makes no difference to any bit.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "dtype.h"
#include "parallel.h"
#include "workspace.h"

namespace bigkern::norm {

constexpr int64_t kPiece = 4096;
constexpr int64_t kGrain = 16384;  // elements that are worth waking a thread for

inline int64_t pieces_of(int64_t columns) { return (columns + kPiece - 1) / kPiece; }
// Short rows go through each step together: one alone would wait for the end of its sums at every step.
constexpr int64_t kTogether = 8;
inline int64_t rows_together(int64_t columns) { return columns > 0 && columns * kTogether <= kPiece ? kTogether : 1; }

inline int64_t piece_size(int64_t columns, int64_t piece) { return std::min(kPiece, columns - piece * kPiece); }

// ---- vectors ------------------------------------------------------------------------------------------------------

// Calls body(i, n) for each vector of [0, count): n lanes from i on, all but the last of them full.
template <class A, class Body>
inline void over_vectors(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + lanes<A> <= count; i += lanes<A>) body(i, int64_t{lanes<A>});
  if (i < count) body(i, count - i);
}

// Where n is the literal lane count, the test is gone after inlining.
template <class T>
inline vec<acc_t<T>> load_lanes(const T* p, int64_t n) {
  return n == lanes<acc_t<T>> ? load(p) : load_partial(p, n);
}
template <class T>
inline void store_lanes(T* p, vec<acc_t<T>> v, int64_t n) {
  n == lanes<acc_t<T>> ? store(p, v) : store_partial(p, v, n);
}

template <class A>
inline vec<A> zero_beyond(vec<A> v, int64_t n) {
  for (int lane = static_cast<int>(n); lane < lanes<A>; ++lane) v[lane] = 0;
  return v;
}

// The sum of the lanes, the upper half added to the lower until one is left: a chain would wait for every addition.
template <int kBytes, class V>
inline auto sum_lanes(V v) {
  using A = std::remove_reference_t<decltype(v[0])>;
  if constexpr (kBytes == 16 && sizeof(A) == 4) {
    return (v[0] + v[2]) + (v[1] + v[3]);
  } else if constexpr (kBytes == 16) {
    return v[0] + v[1];
  } else {
    typedef std::decay_t<A> half_vector __attribute__((vector_size(kBytes / 2)));
    half_vector halves[2];
    std::memcpy(halves, &v, sizeof(v));
    return sum_lanes<kBytes / 2>(half_vector(halves[0] + halves[1]));
  }
}

// A chain of additions for each of several sums.
template <class A, int kSums>
struct Chain {
  vec<A> sums[kSums];
  Chain() {
    for (int k = 0; k < kSums; ++k) sums[k] = vec<A>{};
  }
  void operator()(int k, vec<A> v) { sums[k] += v; }
};

// sums[k] = the sum over [0, count) of what body(i, n, add) adds by add(k, v). Four chains of additions run side by
// side, since one alone would wait for its last addition; and they are short, since a float that has grown large drops
// what is small.
template <class A, int kSums, class Body>
inline void sum_vectors(int64_t count, double (&sums)[kSums], const Body& body) {
  constexpr int64_t kLanes = lanes<A>, kLength = 16;
  for (int k = 0; k < kSums; ++k) sums[k] = 0;
  int64_t i = 0;
  while (i < count) {
    Chain<A, kSums> first, second, third, fourth;
    int64_t end = std::min(count, i + kLength * 4 * kLanes);
    for (; i + 4 * kLanes <= end; i += 4 * kLanes) {
      body(i, kLanes, first);
      body(i + kLanes, kLanes, second);
      body(i + 2 * kLanes, kLanes, third);
      body(i + 3 * kLanes, kLanes, fourth);
    }
    for (; i + kLanes <= end; i += kLanes) body(i, kLanes, first);
    if (i < end) body(i, end - i, [&](int k, vec<A> v) { second(k, zero_beyond<A>(v, end - i)); });
    i = end;
    for (int k = 0; k < kSums; ++k)
      sums[k] += sum_lanes<kVectorBytes>(vec<A>((first.sums[k] + second.sums[k]) + (third.sums[k] + fourth.sums[k])));
  }
}

// ---- rows ---------------------------------------------------------------------------------------------------------

// A matrix with any strides, read a piece of a row at a time.
template <class T>
struct Rows {
  const T* data;
  int64_t rows, columns, row_stride, column_stride;

  explicit Rows(const Tensor& matrix)
      : data(matrix.as<const T>()),
        rows(matrix.sizes[0]),
        columns(matrix.sizes[1]),
        row_stride(matrix.strides[0]),
        column_stride(matrix.strides[1]) {}

  // `count` columns of a row side by side: where they lie, or gathered into `scratch`.
  const T* piece(int64_t row, int64_t begin, int64_t count, T* scratch) const {
    const T* source = data + row * row_stride + begin * column_stride;
    if (column_stride == 1) return source;
    for (int64_t i = 0; i < count; ++i) scratch[i] = source[i * column_stride];
    return scratch;
  }
};

// ---- parameters ---------------------------------------------------------------------------------------------------

template <class T, class A>
void copy_values(const Tensor& tensor, A* values) {
  const T* source = tensor.as<const T>();
  for (int64_t i = 0; i < tensor.sizes[0]; ++i) values[i] = static_cast<A>(to_acc(source[i * tensor.strides[0]]));
}

// weight or bias as numbers of type A side by side: its own memory, or a copy; `absent` everywhere if there is none.
template <class A, class Tag>
class Parameter {
 public:
  Parameter(const Tensor& tensor, int64_t columns, A absent) : lease_(bytes(tensor, columns)) {
    if (is_direct(tensor)) {
      values_ = tensor.as<const A>();
      return;
    }
    A* copy = lease_.template as<A>();
    values_ = copy;
    if (!tensor.defined())
      std::fill(copy, copy + columns, absent);
    else
      dispatch_floating(tensor.dtype, "norm",
                        [&](auto tag) { copy_values<typename decltype(tag)::type>(tensor, copy); });
  }
  const A* values() const { return values_; }

 private:
  static bool is_direct(const Tensor& tensor) {
    constexpr DType kOwn = sizeof(A) == 8 ? DType::float64 : DType::float32;
    return tensor.defined() && tensor.dtype == kOwn && tensor.strides[0] == 1;
  }
  static size_t bytes(const Tensor& tensor, int64_t columns) {
    return is_direct(tensor) ? 0 : static_cast<size_t>(columns) * sizeof(A);
  }
  Lease<Tag> lease_;
  const A* values_;
};
struct WeightTag {};
struct BiasTag {};

}  // namespace bigkern::norm
