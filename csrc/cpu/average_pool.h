// What avg_pool2d and adaptive_avg_pool2d share: sums over windows of rows and columns. The windows that hold an
// element are themselves a range of rows and columns, so the backward is the same sum with the axes the other way
// round.
#pragma once

#include <vector>

#include "channels.h"

namespace bigkern::average_pool {

// For each place of a result along one axis, the places [begin, end) of the source that it sums.
struct Axis {
  std::vector<int64_t> begin, end;
  explicit Axis(int64_t size) : begin(static_cast<size_t>(size)), end(static_cast<size_t>(size)) {}
};

// Windows along one axis: what each one sums, the share of each element, and the windows that hold each element.
struct Windows {
  Axis inside, holding;
  std::vector<double> share;
  Windows(int64_t size, int64_t count) : inside(count), holding(size), share(static_cast<size_t>(count)) {}
};

inline Windows sliding(int64_t size, int64_t count, int64_t kernel, int64_t stride, int64_t pad, bool include_pad,
                       bool has_divisor) {
  Windows windows(size, count);
  for (int64_t o = 0; o < count; ++o) {
    int64_t start = o * stride - pad, stop = std::min(start + kernel, size + pad);
    windows.inside.begin[o] = std::max<int64_t>(start, 0);
    windows.inside.end[o] = std::min(stop, size);
    int64_t counted = include_pad ? stop - start : windows.inside.end[o] - windows.inside.begin[o];
    windows.share[o] = has_divisor ? 1 : 1 / static_cast<double>(counted);
  }
  for (int64_t i = 0; i < size; ++i) {
    windows.holding.begin[i] = (std::max<int64_t>(i + pad - kernel + 1, 0) + stride - 1) / stride;
    windows.holding.end[i] = std::min((i + pad) / stride + 1, count);
  }
  return windows;
}

inline Windows adaptive(int64_t size, int64_t count) {
  Windows windows(size, count);
  for (int64_t o = 0; o < count; ++o) {
    windows.inside.begin[o] = o * size / count;
    windows.inside.end[o] = ((o + 1) * size + count - 1) / count;
    windows.share[o] = 1 / static_cast<double>(windows.inside.end[o] - windows.inside.begin[o]);
  }
  for (int64_t i = 0; i < size; ++i) {
    windows.holding.begin[i] = i * count / size;
    windows.holding.end[i] = ((i + 1) * count + size - 1) / size;
  }
  return windows;
}

// Shares of rows and columns; their product is an element's share. Null: 1.
struct Shares {
  const double *rows = nullptr, *columns = nullptr;
  double at(int64_t row, int64_t column) const { return rows ? rows[row] * columns[column] : 1; }
};

// target[h, w] = target_shares * sum over its rows and columns of source * source_shares, for every plane.
template <class T>
void window_sums(const Tensor& source, const Tensor& target, const Axis& rows, const Axis& columns,
                 const Shares& source_shares, const Shares& target_shares) {
  using A = acc_t<T>;
  using channels::kGrain;
  int64_t channels = source.sizes[1], height = source.sizes[2], width = source.sizes[3];
  int64_t out_h = target.sizes[2], out_w = target.sizes[3];
  // Channels that lie side by side are taken a cache line at a time.
  int64_t strip = channels > 1 && source.strides[1] == 1 ? 16 : 1, strips = (channels + strip - 1) / strip;
  int64_t size = std::max<int64_t>(height * width, out_h * out_w) * strip;
  parallel_for(source.sizes[0] * strips, kGrain / std::max<int64_t>(size, 1) + 1, [&](int64_t begin, int64_t end) {
    std::vector<A> plane(static_cast<size_t>(height * width * strip)), line(static_cast<size_t>(width * strip));
    for (int64_t item = begin; item < end; ++item) {
      int64_t n = item / strips, c = item % strips * strip, count = std::min(strip, channels - c);
      const T* from = source.as<const T>() + n * source.strides[0] + c * source.strides[1];
      for (int64_t h = 0; h < height; ++h) {
        const T* row = from + h * source.strides[2];
        A* place = plane.data() + h * width * strip;
        if (strip == 1) {
          channels::widen(row, source.strides[3], width, place);
        } else {
          for (int64_t w = 0; w < width; ++w)
            channels::widen(row + w * source.strides[3], source.strides[1], count, place + w * strip);
        }
        for (int64_t w = 0; source_shares.rows && w < width; ++w) {
          A share = static_cast<A>(source_shares.at(h, w));
          for (int64_t i = 0; i < strip; ++i) place[w * strip + i] *= share;
        }
      }
      T* to = target.as<T>() + n * target.strides[0] + c * target.strides[1];
      for (int64_t oh = 0; oh < out_h; ++oh) {
        std::fill(line.begin(), line.end(), A(0));
        for (int64_t h = rows.begin[oh]; h < rows.end[oh]; ++h) {
          const A* row = plane.data() + h * width * strip;
          channels::over_vectors<A>(width * strip, [&](int64_t i, int64_t lanes) {
            vec<A> sum = channels::load_lanes(line.data() + i, lanes) + channels::load_lanes(row + i, lanes);
            channels::store_lanes(line.data() + i, sum, lanes);
          });
        }
        for (int64_t ow = 0; ow < out_w; ++ow) {
          A sums[16] = {}, share = static_cast<A>(target_shares.at(oh, ow));
          for (int64_t w = columns.begin[ow]; w < columns.end[ow]; ++w)
            for (int64_t i = 0; i < strip; ++i) sums[i] += line[w * strip + i];
          T* place = to + oh * target.strides[2] + ow * target.strides[3];
          for (int64_t i = 0; i < count; ++i) place[i * target.strides[1]] = from_acc<T>(sums[i] * share);
        }
      }
    }
  });
}

inline void forward(const Tensor& input, const Tensor& output, const Windows& rows, const Windows& columns) {
  dispatch_floating(input.dtype, "average_pool", [&](auto tag) {
    window_sums<typename decltype(tag)::type>(input, output, rows.inside, columns.inside, {},
                                              {rows.share.data(), columns.share.data()});
  });
}

inline void backward(const Tensor& grad_output, const Tensor& grad_input, const Windows& rows, const Windows& columns) {
  dispatch_floating(grad_output.dtype, "average_pool", [&](auto tag) {
    window_sums<typename decltype(tag)::type>(grad_output, grad_input, rows.holding, columns.holding,
                                              {rows.share.data(), columns.share.data()}, {});
  });
}

}  // namespace bigkern::average_pool
