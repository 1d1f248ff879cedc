#include "conv.h"

#include <memory>
#include <vector>

#include "conv_depthwise.h"
#include "conv_gather.h"
#include "conv_result.h"
#include "dtype.h"
#include "gemm.h"

namespace bigkern {
namespace {

// The weights of one group as [result channels, source channels * taps], in the order in which the image is gathered.
template <class T>
class WeightMatrix {
 public:
  // rows_dim: the dimension of weight that counts the result's channels, 0 or 1.
  WeightMatrix(const Tensor& weight, int64_t group, int64_t groups, int rows_dim, const Axes& axes,
               bool channels_last) {
    const int64_t group_size = weight.sizes[0] / groups;
    const T* from = weight.as<T>() + group * group_size * weight.strides[0] + axes.h.first_tap * weight.strides[2] +
                    axes.w.first_tap * weight.strides[3];
    const int64_t sizes[2] = {group_size, weight.sizes[1]};
    const int64_t rows = sizes[rows_dim], row_stride = weight.strides[rows_dim];
    const Level channel = {sizes[1 - rows_dim], weight.strides[1 - rows_dim]};
    const Level tap_h = {axes.h.taps, weight.strides[2] * axes.h.tap_by};
    const Level tap_w = {axes.w.taps, weight.strides[3] * axes.w.tap_by};
    const Level levels[3] = {channels_last ? tap_h : channel, channels_last ? tap_w : tap_h,
                             channels_last ? channel : tap_w};
    const int64_t depth = levels[0].size * levels[1].size * levels[2].size;
    matrix_ = {from, rows, depth, row_stride, 1};
    if (depth == 0 || is_one_run(levels, matrix_.col_stride)) return;
    buffer_.resize(static_cast<size_t>(rows * depth));
    constexpr int64_t kBlock = 16;  // rows at a time: their neighbours share cache lines
    parallel_for((rows + kBlock - 1) / kBlock, 1 + 4096 / depth, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin * kBlock; row < std::min(end * kBlock, rows); row += kBlock) {
        T* to = buffer_.data() + row * depth;
        const int64_t count = std::min(kBlock, rows - row);
        for (int64_t i = 0; i < levels[0].size; ++i)
          for (int64_t j = 0; j < levels[1].size; ++j, to += levels[2].size) {
            const T* source = from + row * row_stride + i * levels[0].stride + j * levels[1].stride;
            if (row_stride < levels[2].stride)
              for (int64_t k = 0; k < levels[2].size; ++k)
                for (int64_t r = 0; r < count; ++r) to[r * depth + k] = source[r * row_stride + k * levels[2].stride];
            else
              for (int64_t r = 0; r < count; ++r)
                copy_strided(to + r * depth, source + r * row_stride, levels[2].size, levels[2].stride);
          }
      }
    });
    matrix_ = {buffer_.data(), rows, depth, depth, 1};
  }
  const Matrix<T>& matrix() const { return matrix_; }

 private:
  struct Level {
    int64_t size, stride;
  };
  static bool is_one_run(const Level (&levels)[3], int64_t& stride) {
    bool first = true;
    int64_t next = 0;
    for (int i = 2; i >= 0; --i) {
      if (levels[i].size == 1) continue;
      if (first)
        stride = levels[i].stride;
      else if (levels[i].stride != next)
        return false;
      first = false;
      next = levels[i].size * levels[i].stride;
    }
    return true;
  }

  Matrix<T> matrix_;
  std::vector<T> buffer_;
};

template <class Reader, class T>
class WeightOperand final : public AnyOperand<typename Reader::packed> {
  using P = typename Reader::packed;

 public:
  explicit WeightOperand(const Matrix<T>& weight) : inner_(weight) {}
  int64_t width() const override { return inner_.width(); }
  int64_t depth() const override { return inner_.depth(); }
  int64_t packing_steps(int64_t count) const override { return inner_.packing_steps(count); }
  void pack(int64_t first, int64_t width, int64_t step, int64_t steps, int64_t pitch, P* panel) const override {
    inner_.pack(first, width, step, steps, pitch, panel);
  }

 private:
  const MatrixOperand<Reader, T> inner_;
};

// Groups at once where there are enough of them, else one after another with all threads at each.
template <class Body>
void for_each_group(int64_t groups, double work, const Body& body) {
  const int64_t grain = static_cast<int64_t>(kWorkPerThread * static_cast<double>(groups) / std::max(work, 1.0)) + 1;
  parallel_for(groups, groups >= available_threads() ? grain : groups, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) body(group);
  });
}

// bias in the type of sums; zeros where there is none.
template <class T>
std::vector<acc_t<T>> widened_bias(const Tensor& bias, int64_t channels) {
  std::vector<acc_t<T>> wide(static_cast<size_t>(channels));
  if (bias.defined())
    for (int64_t c = 0; c < channels; ++c) wide[c] = to_acc(bias.as<T>()[c * bias.strides[0]]);
  return wide;
}

// result = act(weight times the source's values, + bias), at the places of the result that `axes` name.
template <class T>
void convolve(const Tensor& source, const Tensor& weight, int rows_dim, const std::vector<acc_t<T>>& bias, bool relu,
              const Axes& axes, int64_t groups, const Tensor& result) {
  const int64_t pixels = source.sizes[0] * axes.pixels();
  if (pixels == 0) return;
  const bool channels_last = has_channels_last(source, result);
  if (is_depthwise(source, weight, groups, channels_last, result))
    return depthwise_convolve<T>(source, weight, bias.data(), relu, axes, channels_last, result);
  const int64_t source_channels = source.sizes[1] / groups, result_channels = result.sizes[1] / groups;
  const double work = double(pixels) * double(result.sizes[1]) * double(source_channels * axes.taps());
  for_each_group(groups, work, [&](int64_t group) {
    WeightMatrix<T> weights(weight, group, groups, rows_dim, axes, channels_last);
    ImageSink<T> sink(Image<T>(result, group * result_channels), axes, channels_last,
                      bias.data() + group * result_channels, relu);
    with_reader<T>([&](auto reader) {
      using Reader = decltype(reader);
      using P = typename Reader::packed;
      const Image<const T> image(source, group * source_channels);
      const GatherOperand<Reader, T> gathered(image, source_channels, axes, channels_last, false, 0, pixels);
      const WeightOperand<Reader, T> kernel(weights.matrix());
      const AnyOperand<P>&a = channels_last ? static_cast<const AnyOperand<P>&>(gathered) : kernel,
            &b = channels_last ? static_cast<const AnyOperand<P>&>(kernel) : gathered;
      multiply_operands<P>(a, b, static_cast<const TileSink<acc_t<T>>&>(sink));
    });
  });
}

// ---- grad_weight ----------------------------------------------------------------------------------------------------

// Where the gradient is too small to occupy threads, its pixels are cut into parts; by size alone, so that the order of
// summation does not depend on the number of threads.
int64_t parts_of(int64_t gradient_size, int64_t pixels) {
  constexpr int64_t kPixels = 4096, kMost = 16, kSmall = 1 << 16;
  return gradient_size > kSmall ? 1 : std::min(std::max<int64_t>(pixels / kPixels, 1), kMost);
}

// Whether a gradient's rows lie in memory as they are summed.
bool lies_as_summed(const Tensor& gradient, bool channels_last) {
  const int64_t channels = gradient.sizes[1], width = gradient.sizes[3], taps = gradient.sizes[2] * width;
  const int64_t dense[4] = {channels * taps, channels_last ? 1 : taps, channels_last ? width * channels : width,
                            channels_last ? channels : 1};
  for (int dim = 0; dim < 4; ++dim)
    if (gradient.sizes[dim] > 1 && gradient.strides[dim] != dense[dim]) return false;
  return true;
}

// sums[parts][rows][channels * taps], in the order in which the image is gathered, added up and written.
template <class T>
void store_gradient(const acc_t<T>* sums, int64_t parts, const Axes& axes, bool channels_last, int64_t first_row,
                    int64_t rows, const Tensor& gradient) {
  const int64_t channels = gradient.sizes[1], taps = axes.taps(), k = channels * taps;
  const int64_t tap_stride = channels_last ? channels : 1, channel_stride = channels_last ? 1 : taps;
  parallel_for(rows, std::max<int64_t>(1, 4096 / k), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      for (int64_t i = 0; i < axes.h.taps; ++i)
        for (int64_t j = 0; j < axes.w.taps; ++j) {
          const acc_t<T>* from = sums + row * k + (i * axes.w.taps + j) * tap_stride;
          T* to = gradient.as<T>() + (first_row + row) * gradient.strides[0] + i * gradient.strides[2] +
                  j * gradient.strides[3];
          for (int64_t channel = 0; channel < channels; ++channel) {
            acc_t<T> total = from[channel * channel_stride];
            for (int64_t part = 1; part < parts; ++part) total += from[part * rows * k + channel * channel_stride];
            to[channel * gradient.strides[1]] = from_acc<T>(total);
          }
        }
  });
}

template <class T>
void grad_weight_typed(const Tensor& grad_output, const Tensor& input, const ConvGeometry& geometry, const Axes& axes,
                       const Tensor& grad_weight) {
  using A = acc_t<T>;
  const bool channels_last = has_channels_last(input, grad_output);
  if (is_depthwise(input, grad_weight, geometry.groups, channels_last, grad_output))
    return depthwise_grad_weight<T>(grad_output, input, axes, channels_last, grad_weight);
  const int64_t groups = geometry.groups, pixels = input.sizes[0] * axes.pixels();
  const int64_t rows = grad_weight.sizes[0] / groups, channels = grad_weight.sizes[1], k = channels * axes.taps();
  const int64_t parts = parts_of(rows * k, pixels);
  const bool in_place = std::is_same_v<A, T> && parts == 1 && lies_as_summed(grad_weight, channels_last);
  Axes same;  // grad_output itself, pixel by pixel
  same.h.positions = same.h.source_size = axes.h.positions;
  same.w.positions = same.w.source_size = axes.w.positions;
  for_each_group(groups, double(pixels) * double(rows * k) * double(groups), [&](int64_t group) {
    std::unique_ptr<A[]> buffer;
    A* sums = nullptr;
    if constexpr (std::is_same_v<A, T>)
      if (in_place) sums = grad_weight.as<T>() + group * rows * k;
    if (!in_place) sums = (buffer = std::unique_ptr<A[]>(new A[static_cast<size_t>(parts * rows * k)])).get();
    parallel_for(parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        const int64_t first = part * pixels / parts, count = (part + 1) * pixels / parts - first;
        const StoreSink<A> sink(sums + part * rows * k, k);
        with_reader<T>([&](auto reader) {
          using Reader = decltype(reader);
          using P = typename Reader::packed;
          const Image<const T> grad_image(grad_output, group * rows), image(input, group * channels);
          const GatherOperand<Reader, T> a(grad_image, rows, same, channels_last, true, first, count);
          const GatherOperand<Reader, T> b(image, channels, axes, channels_last, true, first, count);
          multiply_operands<P>(static_cast<const AnyOperand<P>&>(a), static_cast<const AnyOperand<P>&>(b),
                               static_cast<const TileSink<A>&>(sink));
        });
      }
    });
    if (!in_place) store_gradient<T>(sums, parts, axes, channels_last, group * rows, rows, grad_weight);
  });
}

Axes forward_axes(const Tensor& input, const Tensor& output, const Tensor& weight, const ConvGeometry& g) {
  return {forward_axis(input.sizes[2], output.sizes[2], weight.sizes[2], g.stride_h, g.padding_h, g.dilation_h),
          forward_axis(input.sizes[3], output.sizes[3], weight.sizes[3], g.stride_w, g.padding_w, g.dilation_w)};
}

template <class T>
void channel_sums_typed(const Tensor& image, const Tensor& sums) {
  using A = acc_t<T>;
  constexpr int kLanes = lanes<A>;
  const int64_t N = image.sizes[0], C = image.sizes[1], H = image.sizes[2], W = image.sizes[3];
  const bool along_channels = has_channels_last(image, image);
  // A vector holds channels, or pixels of one channel.
  const int64_t at_once = along_channels ? kLanes : 1, units = (C + at_once - 1) / at_once;
  const int64_t grain = static_cast<int64_t>(kWorkPerThread / double(N * H * W * at_once + 1)) + 1;
  parallel_for(units, grain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin * at_once; c < std::min(end * at_once, C); c += at_once) {
      const int64_t channels = std::min(at_once, C - c);
      vec<A> total = {};
      for (int64_t n = 0; n < N; ++n)
        for (int64_t y = 0; y < H; ++y) {
          const T* row = image.as<T>() + n * image.strides[0] + c * image.strides[1] + y * image.strides[2];
          vec<A> row_sum = {};  // sums of sums: fewer roundings than one long sum
          if (along_channels) {
            for (int64_t x = 0; x < W; ++x, row += image.strides[3])
              row_sum += channels == kLanes ? load(row) : load_partial(row, channels);
          } else if (image.strides[3] == 1) {
            for (int64_t x = 0; x < W; x += kLanes)
              row_sum += x + kLanes <= W ? load(row + x) : load_partial(row + x, W - x);
          } else {
            for (int64_t x = 0; x < W; ++x) row_sum[x % kLanes] += to_acc(row[x * image.strides[3]]);
          }
          total += row_sum;
        }
      T* to = sums.as<T>() + c * sums.strides[0];
      for (int64_t lane = 0; lane < channels; ++lane)
        to[lane * sums.strides[0]] = from_acc<T>(along_channels ? total[lane] : reduce_add(total));
    }
  });
}

}  // namespace

void conv_forward(const Tensor& input, const Tensor& weight, const Tensor& bias, const ConvGeometry& geometry,
                  bool relu, const Tensor& output) {
  const Axes axes = forward_axes(input, output, weight, geometry);
  dispatch_floating(input.dtype, "conv_forward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    convolve<T>(input, weight, 0, widened_bias<T>(bias, output.sizes[1]), relu, axes, geometry.groups, output);
  });
}

void conv_grad_input(const Tensor& grad_output, const Tensor& weight, const Tensor& bias, const ConvGeometry& geometry,
                     const Tensor& grad_input) {
  const ConvGeometry& g = geometry;
  dispatch_floating(grad_output.dtype, "conv_grad_input", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto wide = widened_bias<T>(bias, grad_input.sizes[1]);
    for (int64_t y = 0; y < g.stride_h; ++y)
      for (int64_t x = 0; x < g.stride_w; ++x) {
        const Axes axes = {gradient_axis(y, grad_output.sizes[2], grad_input.sizes[2], weight.sizes[2], g.stride_h,
                                         g.padding_h, g.dilation_h),
                           gradient_axis(x, grad_output.sizes[3], grad_input.sizes[3], weight.sizes[3], g.stride_w,
                                         g.padding_w, g.dilation_w)};
        convolve<T>(grad_output, weight, 1, wide, false, axes, g.groups, grad_input);
      }
  });
}

void conv_grad_weight(const Tensor& grad_output, const Tensor& input, const ConvGeometry& geometry,
                      const Tensor& grad_weight) {
  const Axes axes = forward_axes(input, grad_output, grad_weight, geometry);
  dispatch_floating(input.dtype, "conv_grad_weight", [&](auto tag) {
    grad_weight_typed<typename decltype(tag)::type>(grad_output, input, geometry, axes, grad_weight);
  });
}

void channel_sums(const Tensor& image, const Tensor& sums) {
  dispatch_floating(image.dtype, "channel_sums",
                    [&](auto tag) { channel_sums_typed<typename decltype(tag)::type>(image, sums); });
}

}  // namespace bigkern
