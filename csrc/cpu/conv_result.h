// What becomes of a convolution's sums: bias, relu, and the stores, to wherever the result's pixels and channels lie.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv_axis.h"
#include "simd.h"
#include "tile_sink.h"

namespace bigkern {

template <class A>
inline vec<A> relu_of(vec<A> z) {
  return z < A(0) ? vec<A>{} : z;  // not a maximum, which would hide NaN
}

// to[i * stride] = act(sums[i] + bias), with bias[i] or bias[0] (`one_bias`).
template <class T>
void store_run(T* to, int64_t stride, const acc_t<T>* sums, int64_t count, const acc_t<T>* bias, bool one_bias,
               bool relu) {
  using A = acc_t<T>;
  constexpr int kLanes = lanes<A>;
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t rest = std::min<int64_t>(kLanes, count - i);
    vec<A> z = rest == kLanes ? load(sums + i) : load_partial(sums + i, rest);
    z += one_bias ? broadcast(*bias) : rest == kLanes ? load(bias + i) : load_partial(bias + i, rest);
    if (relu) z = relu_of<A>(z);
    if (stride != 1)
      for (int64_t lane = 0; lane < rest; ++lane) to[(i + lane) * stride] = from_acc<T>(z[lane]);
    else if (rest == kLanes)
      store(to + i, z);
    else
      store_partial(to + i, z, rest);
  }
}

// Rows are pixels and columns channels where the image is channels_last, else the other way round.
template <class T>
class ImageSink final : public TileSink<acc_t<T>> {
  using A = acc_t<T>;

 public:
  // bias: one value a channel.
  ImageSink(const Image<T>& image, const Axes& axes, bool channels_last, const A* bias, bool relu)
      : image_(image), h_(axes.h), w_(axes.w), channels_last_(channels_last), bias_(bias), relu_(relu) {
    if (h_.spread == 1 && w_.spread == 1 && image.row_stride == w_.positions * image.col_stride) {  // one long row
      w_.positions *= h_.positions;
      h_.positions = 1;
    }
  }

  void operator()(int64_t row, int64_t col, int64_t rows, int64_t cols, const A* sums, int64_t pitch) const override {
    int64_t pixel = channels_last_ ? row : col;
    const int64_t channel = channels_last_ ? col : row, last = pixel + (channels_last_ ? rows : cols);
    while (pixel < last) {
      const int64_t line = pixel / w_.positions, x = pixel % w_.positions;
      const int64_t run = std::min(last - pixel, w_.positions - x);
      T* to = image_.data + line / h_.positions * image_.batch_stride + channel * image_.channel_stride +
              (h_.first + line % h_.positions * h_.spread) * image_.row_stride +
              (w_.first + x * w_.spread) * image_.col_stride;
      const int64_t stride = w_.spread * image_.col_stride;
      if (channels_last_) {
        for (int64_t i = 0; i < run; ++i)
          store_run(to + i * stride, image_.channel_stride, sums + i * pitch, cols, bias_ + channel, false, relu_);
        sums += run * pitch;
      } else {
        for (int64_t r = 0; r < rows; ++r)
          store_run(to + r * image_.channel_stride, stride, sums + r * pitch, run, bias_ + channel + r, true, relu_);
        sums += run;
      }
      pixel += run;
    }
  }

 private:
  const Image<T> image_;
  Axis h_, w_;
  const bool channels_last_;
  const A* bias_;
  const bool relu_;
};

}  // namespace bigkern
