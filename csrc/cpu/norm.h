// What layer_norm, rms_norm and add_layer_norm share: rows in pieces, sums over a piece, and the parameters.
//
// A row is cut into pieces of kPiece columns, which stay in the first-level cache, and the sums of pieces are merged in
// one order. Whether threads share out the rows or the pieces then makes no difference to any bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "dtype.h"
#include "parallel.h"
#include "workspace.h"

namespace bigkern::norm {

constexpr int64_t kPiece = 4096;
constexpr int64_t kGrain = 16384;  // elements that are worth waking a thread for

inline int64_t pieces_of(int64_t columns) { return (columns + kPiece - 1) / kPiece; }
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

// Adds vectors up in double, lane by lane.
template <class A>
class WideSum {
 public:
  void include(vec<A> v) {
    if constexpr (sizeof(A) == 8) {
      lanes_[0] += v;
    } else {
      typedef A half_vector __attribute__((vector_size(kVectorBytes / 2)));
      half_vector halves[2];
      std::memcpy(halves, &v, sizeof(v));
      for (int h = 0; h < 2; ++h) lanes_[h] += __builtin_convertvector(halves[h], vec<double>);
    }
  }
  double total() const { return reduce_add(lanes_[0] + lanes_[1]); }

 private:
  vec<double> lanes_[2] = {};
};

// sums[k] = the sum over [0, count) of what body(i, n, add) adds by add(k, v). Several chains of additions run side by
// side, since one alone would wait for its last addition; and they are short, since a float that has grown large drops
// what is small.
template <class A, int kSums, class Body>
inline void sum_vectors(int64_t count, double (&sums)[kSums], const Body& body) {
  constexpr int kChains = 4, kLength = 8;
  WideSum<A> wide[kSums];
  int64_t i = 0;
  while (i < count) {
    vec<A> chains[kChains][kSums] = {};
    int64_t end = std::min(count, i + kLength * kChains * lanes<A>);
    for (; i + kChains * lanes<A> <= end; i += kChains * lanes<A>)
#pragma GCC unroll 4
      for (int c = 0; c < kChains; ++c)
        body(i + c * lanes<A>, int64_t{lanes<A>}, [&](int k, vec<A> v) { chains[c][k] += v; });
    for (; i + lanes<A> <= end; i += lanes<A>) body(i, int64_t{lanes<A>}, [&](int k, vec<A> v) { chains[0][k] += v; });
    if (i < end) body(i, end - i, [&](int k, vec<A> v) { chains[1][k] += zero_beyond<A>(v, end - i); });
    i = end;
    for (int k = 0; k < kSums; ++k) wide[k].include((chains[0][k] + chains[1][k]) + (chains[2][k] + chains[3][k]));
  }
  for (int k = 0; k < kSums; ++k) sums[k] = wide[k].total();
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

// Moments of some numbers around their mean. For kCentered false: m2 is the sum of squares, and mean stays 0.
struct Moments {
  double count = 0, mean = 0, m2 = 0;

  void include(const Moments& other) {
    if (count == 0) {
      *this = other;
      return;
    }
    double total = count + other.count, shift = other.mean - mean;
    mean += shift * (other.count / total);
    m2 += other.m2 + shift * shift * (count * (other.count / total));
    count = total;
  }
};

template <bool kCentered, class T>
Moments moments_of(const T* values, int64_t count) {
  using A = acc_t<T>;
  Moments moments;
  moments.count = static_cast<double>(count);
  if constexpr (kCentered) {
    // Differences from a number of the row's own size are exact; the first pass finds one that is nearly the mean, and
    // the second corrects it.
    A first = to_acc(values[0]);
    double sum[1], sums[2];
    sum_vectors<A>(count, sum, [&](int64_t i, int64_t n, auto add) { add(0, load_lanes(values + i, n) - first); });
    A center = first + static_cast<A>(sum[0] / moments.count);
    sum_vectors<A>(count, sums, [&](int64_t i, int64_t n, auto add) {
      vec<A> d = load_lanes(values + i, n) - center;
      add(0, d);
      add(1, d * d);
    });
    double correction = sums[0] / moments.count;
    moments.mean = static_cast<double>(center) + correction;
    moments.m2 = sums[1] - sums[0] * correction;
    if (moments.m2 < 0) moments.m2 = 0;  // NaN stays
  } else {
    double sum[1];
    sum_vectors<A>(count, sum, [&](int64_t i, int64_t n, auto add) {
      vec<A> x = load_lanes(values + i, n);
      add(0, x * x);
    });
    moments.m2 = sum[0];
  }
  return moments;
}

// What a row is normalized with. The mean in two parts: next to a large mean, one would round away the digits.
template <class A>
struct Scale {
  A mean, mean_rest, rstd;

  Scale(const Moments& moments, double eps) {
    double count = moments.count;
    mean = static_cast<A>(count > 0 ? moments.mean : 0 / count);
    mean_rest = static_cast<A>(moments.mean - static_cast<double>(mean));
    rstd = static_cast<A>(1 / std::sqrt(moments.m2 / count + eps));
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

// ---- forward ------------------------------------------------------------------------------------------------------

// Where the results of the forward go; mean is null for kCentered false.
template <class T>
struct ForwardOutputs {
  T* output;
  acc_t<T>* mean;
  acc_t<T>* rstd;
};

template <bool kCentered, class T, class A = acc_t<T>>
void normalize_piece(const T* values, int64_t count, const Scale<A>& scale, const A* weight, const A* bias, T* output) {
  over_vectors<A>(count, [&](int64_t i, int64_t n) {
    vec<A> x = load_lanes(values + i, n);
    if constexpr (kCentered) x = (x - scale.mean) - scale.mean_rest;
    vec<A> y = x * scale.rstd * load_lanes(weight + i, n);
    if constexpr (kCentered) y += load_lanes(bias + i, n);
    store_lanes(output + i, y, n);
  });
}

// Source says where a piece of a row comes from: first(row, begin, count, scratch) the first time that it is wanted,
// and again(...) the second.
template <bool kCentered, class T, class Source>
void forward(const Source& source, int64_t rows, int64_t columns, const Tensor& weight_tensor,
             const Tensor& bias_tensor, double eps, const ForwardOutputs<T>& outputs) {
  using A = acc_t<T>;
  Parameter<A, WeightTag> weight(weight_tensor, columns, A(1));
  Parameter<A, BiasTag> bias(bias_tensor, kCentered ? columns : 0, A(0));
  int64_t pieces = pieces_of(columns);

  auto keep = [&](int64_t row, const Scale<A>& scale) {
    if constexpr (kCentered) outputs.mean[row] = scale.mean;
    outputs.rstd[row] = scale.rstd;
  };
  auto write = [&](int64_t row, int64_t piece, const Scale<A>& scale, const T* values) {
    int64_t begin = piece * kPiece;
    normalize_piece<kCentered>(values, piece_size(columns, piece), scale, weight.values() + begin,
                               bias.values() + (kCentered ? begin : 0), outputs.output + row * columns + begin);
  };

  if (rows < available_threads() && pieces > 1) {  // few long rows: threads share out their pieces
    std::vector<Moments> moments(static_cast<size_t>(rows * pieces));
    std::vector<Scale<A>> scales;
    parallel_for(rows * pieces, kGrain / kPiece, [&](int64_t begin, int64_t end) {
      T scratch[kPiece];
      for (int64_t item = begin; item < end; ++item) {
        int64_t row = item / pieces, piece = item % pieces, count = piece_size(columns, piece);
        moments[item] = moments_of<kCentered>(source.first(row, piece * kPiece, count, scratch), count);
      }
    });
    for (int64_t row = 0; row < rows; ++row) {
      Moments total;
      for (int64_t piece = 0; piece < pieces; ++piece) total.include(moments[row * pieces + piece]);
      scales.emplace_back(total, eps);
      keep(row, scales.back());
    }
    parallel_for(rows * pieces, kGrain / kPiece, [&](int64_t begin, int64_t end) {
      T scratch[kPiece];
      for (int64_t item = begin; item < end; ++item) {
        int64_t row = item / pieces, piece = item % pieces;
        write(row, piece, scales[row], source.again(row, piece * kPiece, piece_size(columns, piece), scratch));
      }
    });
    return;
  }
  parallel_for(rows, kGrain / std::max<int64_t>(columns, 1) + 1, [&](int64_t first_row, int64_t end_row) {
    T scratch[kPiece];
    for (int64_t row = first_row; row < end_row; ++row) {
      Moments total;
      const T* values = nullptr;
      for (int64_t piece = 0; piece < pieces; ++piece) {
        int64_t count = piece_size(columns, piece);
        values = source.first(row, piece * kPiece, count, scratch);
        total.include(moments_of<kCentered>(values, count));
      }
      Scale<A> scale(total, eps);
      keep(row, scale);
      for (int64_t piece = 0; piece < pieces; ++piece) {
        if (pieces > 1) values = source.again(row, piece * kPiece, piece_size(columns, piece), scratch);
        write(row, piece, scale, values);
      }
    }
  });
}

// The rows of a tensor, as a source of the forward.
template <class T>
struct TensorSource {
  Rows<T> input;
  const T* first(int64_t row, int64_t begin, int64_t count, T* scratch) const {
    return input.piece(row, begin, count, scratch);
  }
  const T* again(int64_t row, int64_t begin, int64_t count, T* scratch) const {
    return input.piece(row, begin, count, scratch);
  }
};

}  // namespace bigkern::norm
