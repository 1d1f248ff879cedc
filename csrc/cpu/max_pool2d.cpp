#include <limits>
#include <vector>

#include "kernels.h"
#include "norm.h"

namespace bigkern {

namespace {

using norm::kGrain;
using norm::load_lanes;
using norm::over_vectors;
using norm::store_lanes;

struct Window {
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// The first row or column of a window that is not padding.
inline int64_t first_inside(int64_t start, int64_t dilation) {
  return start < 0 ? start + (-start + dilation - 1) / dilation * dilation : start;
}

// Lane indices as wide as the numbers.
template <class A>
using index_t = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

template <class A>
inline auto is_taken(vec<A> value, vec<A> best) {
  return (value > best) | (value != value);
}

// ---- planes -------------------------------------------------------------------------------------------------------

// A plane widened to A, each row padded with -inf and cut by the stride: what a step of the window meets lies side by
// side, and needs no bounds.
template <class T, class A = acc_t<T>>
struct PhasedPlane {
  int64_t stride, length, row_size;
  std::vector<A> values;

  PhasedPlane(const Window& window, int64_t height, int64_t width, int64_t out_w) : stride(window.stride_w) {
    int64_t reach = (window.kernel_w - 1) * window.dilation_w + 1;
    // Full vectors run past the last window.
    length = out_w + lanes<A> + std::max(reach, width + window.pad_w) / stride + 1;
    row_size = stride * length;
    values.assign(static_cast<size_t>(height * row_size), -std::numeric_limits<A>::infinity());
  }
  void fill(const Tensor& input, int64_t n, int64_t c, int64_t pad) {
    const T* plane = input.as<const T>() + n * input.strides[0] + c * input.strides[1];
    int64_t width = input.sizes[3];
    for (int64_t row = 0; row < input.sizes[2]; ++row) {
      const T* source = plane + row * input.strides[2];
      A* target = values.data() + row * row_size;
      int64_t phase = pad % stride, place = pad / stride;
      for (int64_t i = 0; i < width; ++i) {
        target[phase * length + place] = to_acc(source[i * input.strides[3]]);
        if (++phase == stride) phase = 0, ++place;
      }
    }
  }
  // What column step `offset` of each window meets, counted from the left end of the padding.
  const A* at(int64_t row, int64_t offset) const {
    return values.data() + row * row_size + offset % stride * length + offset / stride;
  }
};

template <class T>
void pool_planes(const Tensor& input, const Window& w, const Tensor& output, const Tensor& indices) {
  using A = acc_t<T>;
  using I = index_t<A>;
  int64_t channels = input.sizes[1], height = input.sizes[2], width = input.sizes[3];
  int64_t out_h = output.sizes[2], out_w = output.sizes[3];
  int64_t grain = kGrain / (height * width) + 1;
  parallel_for(input.sizes[0] * channels, grain, [&](int64_t begin, int64_t end) {
    PhasedPlane<T> plane(w, height, width, out_w);
    std::vector<I> first(static_cast<size_t>(out_w));
    for (int64_t ow = 0; ow < out_w; ++ow)
      first[ow] = static_cast<I>(first_inside(ow * w.stride_w - w.pad_w, w.dilation_w));
    vec<I> steps;
    for (int lane = 0; lane < lanes<I>; ++lane) steps[lane] = static_cast<I>(lane * w.stride_w);
    for (int64_t item = begin; item < end; ++item) {
      int64_t n = item / channels, c = item % channels;
      plane.fill(input, n, c, w.pad_w);
      for (int64_t oh = 0; oh < out_h; ++oh) {
        int64_t top = oh * w.stride_h - w.pad_h, row0 = first_inside(top, w.dilation_h);
        int64_t rows_end = std::min(height, top + w.kernel_h * w.dilation_h);
        T* target = output.as<T>() + n * output.strides[0] + c * output.strides[1] + oh * output.strides[2];
        int32_t* where =
            indices.as<int32_t>() + n * indices.strides[0] + c * indices.strides[1] + oh * indices.strides[2];
        for (int64_t ow = 0; ow < out_w; ow += lanes<A>) {
          int64_t count = std::min<int64_t>(lanes<A>, out_w - ow);
          vec<A> best = broadcast(-std::numeric_limits<A>::infinity());
          vec<I> index{};
          for (int64_t lane = 0; lane < count; ++lane) index[lane] = static_cast<I>(row0 * width) + first[ow + lane];
          for (int64_t row = row0; row < rows_end; row += w.dilation_h)
            for (int64_t k = 0; k < w.kernel_w; ++k) {
              int64_t column = k * w.dilation_w;
              vec<A> value = load(plane.at(row, column) + ow);
              auto taken = is_taken<A>(value, best);
              best = taken ? value : best;
              index = taken ? steps + static_cast<I>(row * width + ow * w.stride_w + column - w.pad_w) : index;
            }
          if (output.strides[3] == 1) {
            store_lanes(target + ow, best, count);
          } else {
            for (int64_t lane = 0; lane < count; ++lane)
              target[(ow + lane) * output.strides[3]] = from_acc<T>(static_cast<A>(best[lane]));
          }
          for (int64_t lane = 0; lane < count; ++lane)
            where[(ow + lane) * indices.strides[3]] = static_cast<int32_t>(index[lane]);
        }
      }
    }
  });
}

// ---- channels last ------------------------------------------------------------------------------------------------

template <class T>
void pool_channels(const Tensor& input, const Window& w, const Tensor& output, const Tensor& indices) {
  using A = acc_t<T>;
  using I = index_t<A>;
  int64_t channels = input.sizes[1], height = input.sizes[2], width = input.sizes[3];
  int64_t out_h = output.sizes[2], out_w = output.sizes[3];
  int64_t grain = kGrain / (channels * w.kernel_h * w.kernel_w) + 1;
  parallel_for(input.sizes[0] * out_h * out_w, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      int64_t n = item / (out_h * out_w), oh = item / out_w % out_h, ow = item % out_w;
      int64_t top = oh * w.stride_h - w.pad_h, left = ow * w.stride_w - w.pad_w;
      int64_t row0 = first_inside(top, w.dilation_h), column0 = first_inside(left, w.dilation_w);
      int64_t rows_end = std::min(height, top + w.kernel_h * w.dilation_h);
      int64_t columns_end = std::min(width, left + w.kernel_w * w.dilation_w);
      const T* image = input.as<const T>() + n * input.strides[0];
      T* target = output.as<T>() + n * output.strides[0] + oh * output.strides[2] + ow * output.strides[3];
      int32_t* where =
          indices.as<int32_t>() + n * indices.strides[0] + oh * indices.strides[2] + ow * indices.strides[3];
      over_vectors<A>(channels, [&](int64_t c, int64_t count) {
        vec<A> best = broadcast(-std::numeric_limits<A>::infinity());
        vec<I> index = vec<I>{} + static_cast<I>(row0 * width + column0);
        for (int64_t row = row0; row < rows_end; row += w.dilation_h)
          for (int64_t column = column0; column < columns_end; column += w.dilation_w) {
            vec<A> value = load_lanes(image + row * input.strides[2] + column * input.strides[3] + c, count);
            auto taken = is_taken<A>(value, best);
            best = taken ? value : best;
            index = taken ? vec<I>{} + static_cast<I>(row * width + column) : index;
          }
        store_lanes(target + c, best, count);
        for (int64_t lane = 0; lane < count; ++lane)
          where[(c + lane) * indices.strides[1]] = static_cast<int32_t>(index[lane]);
      });
    }
  });
}

}  // namespace

void max_pool2d_forward(const Tensor& input, int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                        int64_t pad_h, int64_t pad_w, int64_t dilation_h, int64_t dilation_w, bool /*ceil_mode*/,
                        const Tensor& output, const Tensor& indices) {
  Window window{kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w};
  dispatch_floating(input.dtype, "max_pool2d_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    bool channels_last = input.sizes[1] > 1 && input.strides[1] == 1 && output.strides[1] == 1;
    channels_last ? pool_channels<T>(input, window, output, indices) : pool_planes<T>(input, window, output, indices);
  });
}

void max_pool2d_backward(const Tensor& grad_output, const Tensor& indices, int64_t height, int64_t width,
                         int64_t /*kernel_h*/, int64_t /*kernel_w*/, int64_t /*stride_h*/, int64_t /*stride_w*/,
                         int64_t /*pad_h*/, int64_t /*pad_w*/, int64_t /*dilation_h*/, int64_t /*dilation_w*/,
                         const Tensor& grad_input) {
  dispatch_floating(grad_output.dtype, "max_pool2d_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    int64_t channels = indices.sizes[1], out_h = indices.sizes[2], out_w = indices.sizes[3];
    // Channels that lie side by side are taken a cache line at a time.
    int64_t strip = channels > 1 && indices.strides[1] == 1 ? 16 : 1, strips = (channels + strip - 1) / strip;
    parallel_for(indices.sizes[0] * strips, kGrain / (height * width * strip) + 1, [&](int64_t begin, int64_t end) {
      std::vector<A> sums(static_cast<size_t>(height * width * strip));
      for (int64_t item = begin; item < end; ++item) {
        int64_t n = item / strips, first = item % strips * strip, count = std::min(strip, channels - first);
        std::fill(sums.begin(), sums.end(), A(0));
        for (int64_t oh = 0; oh < out_h; ++oh)
          for (int64_t ow = 0; ow < out_w; ++ow) {
            const T* grad = grad_output.as<const T>() + n * grad_output.strides[0] + first * grad_output.strides[1] +
                            oh * grad_output.strides[2] + ow * grad_output.strides[3];
            const int32_t* where = indices.as<const int32_t>() + n * indices.strides[0] + first * indices.strides[1] +
                                   oh * indices.strides[2] + ow * indices.strides[3];
            for (int64_t c = 0; c < count; ++c)
              sums[where[c * indices.strides[1]] * strip + c] += to_acc(grad[c * grad_output.strides[1]]);
          }
        for (int64_t h = 0; h < height; ++h)
          for (int64_t w = 0; w < width; ++w) {
            T* target = grad_input.as<T>() + n * grad_input.strides[0] + first * grad_input.strides[1] +
                        h * grad_input.strides[2] + w * grad_input.strides[3];
            const A* source = sums.data() + (h * width + w) * strip;
            for (int64_t c = 0; c < count; ++c) target[c * grad_input.strides[1]] = from_acc<T>(source[c]);
          }
      }
    });
  });
}

}  // namespace bigkern
