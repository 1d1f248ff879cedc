// The forward of layer_norm, rms_norm and add_layer_norm: the moments of a row, merged over its pieces, then its
// output.
#pragma once

#include <cmath>
#include <vector>

#include "norm.h"

namespace bigkern::norm {

// ---- moments ------------------------------------------------------------------------------------------------------

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

// A number near the mean: differences from a number of the row's own size are exact, and so is a sum of nothing but
// zeros.
template <class T>
acc_t<T> center_of(const T* values, int64_t count) {
  using A = acc_t<T>;
  A first = to_acc(values[0]);
  double sum[1];
  sum_vectors<A>(count, sum, [&](int64_t i, int64_t n, auto&& add) { add(0, load_lanes(values + i, n) - first); });
  return first + static_cast<A>(sum[0] / static_cast<double>(count));
}

// The moments, given a number near the mean, which they correct; for kCentered false it is not looked at.
template <bool kCentered, class T, class A = acc_t<T>>
Moments moments_around(const T* values, int64_t count, A center) {
  Moments moments;
  moments.count = static_cast<double>(count);
  double sums[kCentered ? 2 : 1];
  sum_vectors<A>(count, sums, [&](int64_t i, int64_t n, auto&& add) {
    vec<A> d = load_lanes(values + i, n);
    if constexpr (kCentered) {
      d -= center;
      add(1, d);
    }
    add(0, d * d);
  });
  moments.m2 = sums[0];
  if constexpr (kCentered) {
    double correction = sums[1] / moments.count;
    moments.mean = static_cast<double>(center) + correction;
    moments.m2 -= sums[1] * correction;
    if (moments.m2 < 0) moments.m2 = 0;  // NaN stays
  }
  return moments;
}

template <bool kCentered, class T>
Moments moments_of(const T* values, int64_t count) {
  return moments_around<kCentered>(values, count, kCentered ? center_of(values, count) : acc_t<T>(0));
}

// What a row is normalized with. The mean in two parts: next to a large mean, one would round away the digits.
template <class A>
struct Scale {
  A mean, mean_rest, rstd;

  Scale() = default;
  Scale(const Moments& moments, double eps) {
    double count = moments.count;
    mean = static_cast<A>(count > 0 ? moments.mean : 0 / count);
    mean_rest = static_cast<A>(moments.mean - static_cast<double>(mean));
    rstd = static_cast<A>(1 / std::sqrt(moments.m2 / count + eps));
  }
};

// ---- output -------------------------------------------------------------------------------------------------------

// Where the results of the forward go; mean is null for kCentered false.
template <class T>
struct ForwardOutputs {
  T* output;
  acc_t<T>* mean;
  acc_t<T>* rstd;
};

template <bool kCentered, class T, class A = acc_t<T>>
void normalize_piece(const T* values, int64_t count, const Scale<A> scale, const A* weight, const A* bias, T* output) {
  over_vectors<A>(count, [=](int64_t i, int64_t n) {
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
  int64_t together = rows_together(columns);
  parallel_for(rows, kGrain / std::max<int64_t>(columns, 1) + 1, [&](int64_t first_row, int64_t end_row) {
    T scratch[kPiece];
    const T* values[kTogether];
    A centers[kTogether] = {};
    Scale<A> scales[kTogether];
    for (int64_t row = first_row; together > 1 && row < end_row; row += together) {
      int64_t count = std::min(together, end_row - row);
      for (int64_t r = 0; r < count; ++r) {
        values[r] = source.first(row + r, 0, columns, scratch + r * columns);
        if constexpr (kCentered) centers[r] = center_of(values[r], columns);
      }
      for (int64_t r = 0; r < count; ++r)
        scales[r] = Scale<A>(moments_around<kCentered>(values[r], columns, centers[r]), eps);
      for (int64_t r = 0; r < count; ++r) {
        keep(row + r, scales[r]);
        write(row + r, 0, scales[r], values[r]);
      }
    }
    for (int64_t row = first_row; together == 1 && row < end_row; ++row) {
      Moments total;
      for (int64_t piece = 0; piece < pieces; ++piece) {
        int64_t count = piece_size(columns, piece);
        values[0] = source.first(row, piece * kPiece, count, scratch);
        total.include(moments_of<kCentered>(values[0], count));
      }
      Scale<A> scale(total, eps);
      keep(row, scale);
      for (int64_t piece = 0; piece < pieces; ++piece) {
        if (pieces > 1) values[0] = source.again(row, piece * kPiece, piece_size(columns, piece), scratch);
        write(row, piece, scale, values[0]);
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
