// Depthwise convolution, one channel to a group: no product of matrices, only a few multiplications for each value
// read.
//
// Where channels lie together a vector holds channels. Else it holds pixels of one channel, whose rows are first copied
// into a band with the padding in place and the columns sorted by their remainder by the stride: every tap then reads
// whole vectors, whatever the stride, and nothing is asked at the border.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "conv_axis.h"
#include "conv_result.h"
#include "parallel.h"
#include "simd.h"
#include "workspace.h"

namespace bigkern {

inline bool is_depthwise(const Tensor& source, const Tensor& weight, int64_t groups, bool channels_last,
                         const Tensor& result) {
  const bool vectors_of_channels = source.strides[1] == 1 && result.strides[1] == 1;
  return weight.sizes[1] == 1 && weight.sizes[0] == groups && (!channels_last || vectors_of_channels);
}

// The weights of the taps that take part: [taps][channels], or [channels][taps].
template <class T>
std::vector<acc_t<T>> depthwise_taps(const Tensor& weight, const Axes& axes, bool channels_last) {
  const int64_t channels = weight.sizes[0], taps = axes.taps();
  std::vector<acc_t<T>> wide(static_cast<size_t>(channels * taps));
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t i = axes.h.first_tap + tap / axes.w.taps * axes.h.tap_by;
      const int64_t j = axes.w.first_tap + tap % axes.w.taps * axes.w.tap_by;
      const T value = weight.as<T>()[c * weight.strides[0] + i * weight.strides[2] + j * weight.strides[3]];
      wide[channels_last ? tap * channels + c : c * taps + tap] = to_acc(value);
    }
  return wide;
}

// ---- vectors of channels --------------------------------------------------------------------------------------------

// Calls body(tap, place in the image) for the taps that meet the image at pixel (y, x) of the result.
template <class T, class Body>
inline void for_each_tap_inside(const Image<const T>& image, const Axes& axes, int64_t n, int64_t y, int64_t x,
                                const Body& body) {
  for (int64_t i = 0; i < axes.h.taps; ++i) {
    const int64_t row = y * axes.h.step + axes.h.tap_place(i);
    if (row < 0 || row >= axes.h.source_size) continue;
    const T* line = image.data + n * image.batch_stride + row * image.row_stride;
    for (int64_t j = 0; j < axes.w.taps; ++j) {
      const int64_t col = x * axes.w.step + axes.w.tap_place(j);
      if (col >= 0 && col < axes.w.source_size) body(i * axes.w.taps + j, line + col * image.col_stride);
    }
  }
}

template <class T>
vec<acc_t<T>> load_channels(const T* from, int64_t count) {
  return count >= lanes<acc_t<T>> ? load(from) : load_partial(from, count);
}

struct DepthwiseRowWorkspace;

template <class T>
void depthwise_rows(const Image<const T>& source, const Image<T>& result, int64_t channels, int64_t batch,
                    const Axes& axes, const acc_t<T>* taps, const acc_t<T>* bias, bool relu) {
  using A = acc_t<T>;
  constexpr int kLanes = lanes<A>;
  const double work = double(axes.w.positions) * double(axes.taps() * channels);
  parallel_for(batch * axes.h.positions, int64_t(kWorkPerThread / (4 * work + 1)) + 1, [&](int64_t begin, int64_t end) {
    std::vector<std::pair<const T*, const A*>> met(static_cast<size_t>(axes.taps()));  // pixel and weights of a tap
    Lease<DepthwiseRowWorkspace> lease((channels + kLanes) * sizeof(A));
    A* sums = lease.template as<A>();
    for (int64_t line = begin; line < end; ++line) {
      const int64_t n = line / axes.h.positions, y = line % axes.h.positions;
      T* to = result.data + n * result.batch_stride + (axes.h.first + y * axes.h.spread) * result.row_stride;
      for (int64_t x = 0; x < axes.w.positions; ++x) {
        size_t count = 0;
        for_each_tap_inside(source, axes, n, y, x,
                            [&](int64_t tap, const T* from) { met[count++] = {from, taps + tap * channels}; });
        int64_t c = 0;
        for (; c + kLanes <= channels; c += kLanes) {
          vec<A> sum = {};
          for (size_t i = 0; i < count; ++i) sum += load(met[i].first + c) * load(met[i].second + c);
          store(sums + c, sum);
        }
        if (const int64_t rest = channels - c) {
          vec<A> sum = {};
          for (size_t i = 0; i < count; ++i)
            sum += load_partial(met[i].first + c, rest) * load_partial(met[i].second + c, rest);
          store_partial(sums + c, sum, rest);
        }
        store_run(to + (axes.w.first + x * axes.w.spread) * result.col_stride, 1, sums, channels, bias, false, relu);
      }
    }
  });
}

template <class T>
void depthwise_grad_weight_rows(const Image<const T>& grad_output, const Image<const T>& input, int64_t channels,
                                int64_t batch, const Axes& axes, const Tensor& grad_weight) {
  using A = acc_t<T>;
  constexpr int kLanes = lanes<A>;
  const int64_t taps = axes.taps();
  parallel_for((channels + kLanes - 1) / kLanes, 1, [&](int64_t begin, int64_t end) {
    std::vector<vec<A>> totals(static_cast<size_t>(taps)), row_sums(static_cast<size_t>(taps));
    for (int64_t c = begin * kLanes; c < std::min(end * kLanes, channels); c += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, channels - c);
      std::fill(totals.begin(), totals.end(), vec<A>{});
      for (int64_t line = 0; line < batch * axes.h.positions; ++line) {
        const int64_t n = line / axes.h.positions, y = line % axes.h.positions;
        const T* grad_row = grad_output.data + n * grad_output.batch_stride + y * grad_output.row_stride + c;
        std::fill(row_sums.begin(), row_sums.end(), vec<A>{});
        for (int64_t x = 0; x < axes.w.positions; ++x) {
          const vec<A> grad = load_channels(grad_row + x * grad_output.col_stride, count);
          for_each_tap_inside(input, axes, n, y, x, [&](int64_t tap, const T* from) {
            row_sums[tap] += grad * load_channels(from + c, count);
          });
        }
        for (int64_t tap = 0; tap < taps; ++tap) totals[tap] += row_sums[tap];  // sums of sums: fewer roundings
      }
      for (int64_t tap = 0; tap < taps; ++tap) {
        T* to = grad_weight.as<T>() + c * grad_weight.strides[0] + tap / axes.w.taps * grad_weight.strides[2] +
                tap % axes.w.taps * grad_weight.strides[3];
        for (int64_t lane = 0; lane < count; ++lane) to[lane * grad_weight.strides[0]] = from_acc<T>(totals[tap][lane]);
      }
    }
  });
}

// ---- vectors of pixels ----------------------------------------------------------------------------------------------

struct DepthwiseBandWorkspace;

// Rows of one channel's source, widened, as the taps of some rows of the result need them.
template <class T>
class Band {
  using A = acc_t<T>;
  static constexpr int64_t kBytes = 64 << 10;  // leaves the second-level cache room for the result

 public:
  explicit Band(const Axes& axes) : axes_(axes) {
    first_h_ = axes.h.offset + std::min<int64_t>(0, (axes.h.taps - 1) * axes.h.tap_offset);
    first_w_ = axes.w.offset + std::min<int64_t>(0, (axes.w.taps - 1) * axes.w.tap_offset);
    const int64_t reach_w = std::abs(axes.w.tap_offset) * std::max<int64_t>(axes.w.taps - 1, 0);
    reach_h_ = std::abs(axes.h.tap_offset) * std::max<int64_t>(axes.h.taps - 1, 0);
    // Whole vectors are read up to the end of the last one.
    const int64_t kLanes = lanes<A>, columns = axes.w.positions + reach_w / axes.w.step;
    columns_ = (columns + 2 * kLanes - 1) / kLanes * kLanes;
    pitch_ = columns_ * axes.w.step;
    const int64_t affordable = kBytes / (pitch_ * int64_t{sizeof(A)});
    rows_ = std::min(std::max<int64_t>((affordable - reach_h_) / axes.h.step, 1), axes.h.positions);
    for (int64_t i = 0; i < axes.h.taps; ++i)
      for (int64_t j = 0; j < axes.w.taps; ++j) {
        const int64_t down = axes.h.tap_place(i) - first_h_, right = axes.w.tap_place(j) - first_w_;
        tap_places_.push_back(down * pitch_ + right % axes.w.step * columns_ + right / axes.w.step);
      }
  }
  size_t bytes() const { return static_cast<size_t>(band_rows(rows_) * pitch_) * sizeof(A); }
  int64_t rows() const { return rows_; }

  // Fills `band` for rows y, ..., y + rows - 1 of the result.
  void fill(const T* plane, int64_t row_stride, int64_t col_stride, int64_t y, int64_t rows, A* band) const {
    for (int64_t i = 0; i < band_rows(rows); ++i) {
      const int64_t row = y * axes_.h.step + first_h_ + i;
      const bool inside = row >= 0 && row < axes_.h.source_size;
      for (int64_t remainder = 0; remainder < axes_.w.step; ++remainder, band += columns_)
        if (inside)
          fill_columns(plane + row * row_stride, col_stride, first_w_ + remainder, band);
        else
          std::fill(band, band + columns_, A(0));
    }
  }

  // Where the values that tap meets at row `row` of the band's result begin.
  const A* at(const A* band, int64_t row, int64_t tap) const {
    return band + row * axes_.h.step * pitch_ + tap_places_[tap];
  }

 private:
  int64_t band_rows(int64_t rows) const { return (rows - 1) * axes_.h.step + reach_h_ + 1; }

  // to[c] = line[place + c * step], with zeros outside.
  void fill_columns(const T* line, int64_t col_stride, int64_t place, A* to) const {
    const int64_t step = axes_.w.step, size = axes_.w.source_size, stride = step * col_stride;
    const int64_t begin = std::min(place < 0 ? (-place + step - 1) / step : 0, columns_);
    const int64_t end = std::max(std::min(size > place ? (size - place - 1) / step + 1 : 0, columns_), begin);
    std::fill(to, to + begin, A(0));
    const T* from = line + place * col_stride;
    int64_t c = begin;
    if (stride == 1)
      for (constexpr int kLanes = lanes<A>; c + kLanes <= end; c += kLanes) store(to + c, load(from + c));
    for (; c < end; ++c) to[c] = to_acc(from[c * stride]);
    std::fill(to + end, to + columns_, A(0));
  }

  const Axes axes_;
  int64_t first_h_, first_w_, reach_h_, columns_, pitch_, rows_;
  std::vector<int64_t> tap_places_;
};

template <class T>
void depthwise_planes(const Image<const T>& source, const Image<T>& result, int64_t channels, int64_t batch,
                      const Axes& axes, const acc_t<T>* taps, const acc_t<T>* bias, bool relu) {
  using A = acc_t<T>;
  constexpr int kLanes = lanes<A>, kVectors = 4;
  const Band<T> band(axes);
  const int64_t num_taps = axes.taps(), columns = axes.w.positions;
  const double work = double(axes.pixels()) * double(num_taps + 1);
  parallel_for(batch * channels, int64_t(kWorkPerThread / (4 * work + 1)) + 1, [&](int64_t begin, int64_t end) {
    Lease<DepthwiseBandWorkspace> lease(band.bytes() + kVectors * kLanes * sizeof(A));
    A* sums = lease.template as<A>();
    A* values = sums + kVectors * kLanes;
    for (int64_t plane = begin; plane < end; ++plane) {
      const int64_t n = plane / channels, c = plane % channels;
      const A* scales = taps + c * num_taps;
      for (int64_t y = 0; y < axes.h.positions; y += band.rows()) {
        const int64_t rows = std::min(band.rows(), axes.h.positions - y);
        band.fill(source.data + n * source.batch_stride + c * source.channel_stride, source.row_stride,
                  source.col_stride, y, rows, values);
        for (int64_t row = 0; row < rows; ++row) {
          T* to = result.data + n * result.batch_stride + c * result.channel_stride +
                  (axes.h.first + (y + row) * axes.h.spread) * result.row_stride + axes.w.first * result.col_stride;
          for (int64_t x = 0; x < columns; x += kVectors * kLanes) {
            const int vectors = static_cast<int>(std::min<int64_t>((columns - x + kLanes - 1) / kLanes, kVectors));
            vec<A> sum[kVectors] = {};
            for (int64_t tap = 0; tap < num_taps; ++tap) {
              const A* from = band.at(values, row, tap) + x;
              const vec<A> scale = broadcast(scales[tap]);
              if (vectors == kVectors)
                for (int v = 0; v < kVectors; ++v) sum[v] += load(from + v * kLanes) * scale;
              else
                for (int v = 0; v < vectors; ++v) sum[v] += load(from + v * kLanes) * scale;
            }
            for (int v = 0; v < kVectors; ++v) store(sums + v * kLanes, sum[v]);
            const int64_t stride = axes.w.spread * result.col_stride;
            store_run(to + x * stride, stride, sums, std::min<int64_t>(kVectors * kLanes, columns - x), bias + c, true,
                      relu);
          }
        }
      }
    }
  });
}

template <class T>
void depthwise_grad_weight_planes(const Image<const T>& grad_output, const Image<const T>& input, int64_t channels,
                                  int64_t batch, const Axes& axes, const Tensor& grad_weight) {
  using A = acc_t<T>;
  constexpr int kLanes = lanes<A>;
  const Band<T> band(axes);
  const int64_t taps = axes.taps(), columns = axes.w.positions, padded = (columns + kLanes - 1) / kLanes * kLanes;
  parallel_for(channels, 1, [&](int64_t begin, int64_t end) {
    Lease<DepthwiseBandWorkspace> lease(band.bytes() + static_cast<size_t>(padded) * sizeof(A));
    A* grads = lease.template as<A>();
    A* values = grads + padded;
    std::vector<vec<A>> totals(static_cast<size_t>(taps));
    for (int64_t c = begin; c < end; ++c) {
      std::fill(totals.begin(), totals.end(), vec<A>{});
      for (int64_t n = 0; n < batch; ++n)
        for (int64_t y = 0; y < axes.h.positions; y += band.rows()) {
          const int64_t rows = std::min(band.rows(), axes.h.positions - y);
          band.fill(input.data + n * input.batch_stride + c * input.channel_stride, input.row_stride, input.col_stride,
                    y, rows, values);
          for (int64_t row = 0; row < rows; ++row) {
            const T* from = grad_output.data + n * grad_output.batch_stride + c * grad_output.channel_stride +
                            (y + row) * grad_output.row_stride;
            for (int64_t x = 0; x < columns; ++x) grads[x] = to_acc(from[x * grad_output.col_stride]);
            std::fill(grads + columns, grads + padded, A(0));
            for (int64_t tap = 0; tap < taps; ++tap) {
              const A* met = band.at(values, row, tap);
              vec<A> sum = {};
              for (int64_t x = 0; x < padded; x += kLanes) sum += load(grads + x) * load(met + x);
              totals[tap] += sum;  // sums of sums: fewer roundings
            }
          }
        }
      for (int64_t tap = 0; tap < taps; ++tap)
        grad_weight.as<T>()[c * grad_weight.strides[0] + tap / axes.w.taps * grad_weight.strides[2] +
                            tap % axes.w.taps * grad_weight.strides[3]] = from_acc<T>(reduce_add(totals[tap]));
    }
  });
}

// ---- both -----------------------------------------------------------------------------------------------------------

template <class T>
void depthwise_convolve(const Tensor& source, const Tensor& weight, const acc_t<T>* bias, bool relu, const Axes& axes,
                        bool channels_last, const Tensor& result) {
  const auto taps = depthwise_taps<T>(weight, axes, channels_last);
  const Image<const T> from(source, 0);
  const Image<T> to(result, 0);
  const auto run = channels_last ? depthwise_rows<T> : depthwise_planes<T>;
  run(from, to, source.sizes[1], source.sizes[0], axes, taps.data(), bias, relu);
}

template <class T>
void depthwise_grad_weight(const Tensor& grad_output, const Tensor& input, const Axes& axes, bool channels_last,
                           const Tensor& grad_weight) {
  const Image<const T> grad_image(grad_output, 0), image(input, 0);
  const auto run = channels_last ? depthwise_grad_weight_rows<T> : depthwise_grad_weight_planes<T>;
  run(grad_image, image, input.sizes[1], input.sizes[0], axes, grad_weight);
}

}  // namespace bigkern
