// Which pixels meet which: one convolution, forward or as a gradient, along one dimension of an image.
//
// A gradient with a stride of s falls into s convolutions of stride 1, one for each remainder of the input's place by
// s: no tap belongs to two of them, so nothing is multiplied by the zeros that a stride leaves between pixels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "../tensor.h"

namespace bigkern {

struct Axis {
  int64_t positions = 1;              // of the result
  int64_t source_size = 1;            // places of the source; what lies outside is zero
  int64_t taps = 1;                   // of the kernel that take part
  int64_t first_tap = 0, tap_by = 1;  // tap t is number first_tap + t * tap_by of the kernel
  int64_t step = 1;                   // position p and tap t meet the source at p * step + offset + t * tap_offset
  int64_t offset = 0, tap_offset = 0;
  int64_t first = 0, spread = 1;  // position p stands at place first + p * spread of the result

  int64_t tap_place(int64_t tap) const { return offset + tap * tap_offset; }
};

inline Axis forward_axis(int64_t source_size, int64_t result_size, int64_t kernel, int64_t stride, int64_t padding,
                         int64_t dilation) {
  Axis axis;
  axis.positions = result_size;
  axis.source_size = source_size;
  axis.taps = kernel;
  axis.step = stride;
  axis.offset = -padding;
  axis.tap_offset = dilation;
  return axis;
}

// The places remainder, remainder + stride, ... of the gradient; the source is grad_output.
inline Axis gradient_axis(int64_t remainder, int64_t source_size, int64_t result_size, int64_t kernel, int64_t stride,
                          int64_t padding, int64_t dilation) {
  Axis axis;
  axis.positions = result_size > remainder ? (result_size - remainder + stride - 1) / stride : 0;
  axis.source_size = source_size;
  axis.tap_by = stride / std::gcd(stride, dilation);
  // Tap t comes from grad_output's place (place + padding - t * dilation) / stride, where that is whole.
  while (axis.first_tap < axis.tap_by && (remainder + padding - axis.first_tap * dilation) % stride != 0)
    ++axis.first_tap;
  const bool none = axis.first_tap == axis.tap_by || axis.first_tap >= kernel;
  axis.taps = none ? 0 : (kernel - 1 - axis.first_tap) / axis.tap_by + 1;
  axis.offset = none ? 0 : (remainder + padding - axis.first_tap * dilation) / stride;
  axis.tap_offset = -(axis.tap_by * dilation / stride);
  axis.first = remainder;
  axis.spread = stride;
  return axis;
}

struct Axes {
  Axis h, w;

  int64_t pixels() const { return h.positions * w.positions; }
  int64_t taps() const { return h.taps * w.taps; }
};

// An image in memory, of one group of channels.
template <class T>
struct Image {
  T* data;
  int64_t batch_stride, channel_stride, row_stride, col_stride;

  Image(const Tensor& tensor, int64_t first_channel)
      : data(tensor.as<T>() + first_channel * tensor.strides[1]),
        batch_stride(tensor.strides[0]),
        channel_stride(tensor.strides[1]),
        row_stride(tensor.strides[2]),
        col_stride(tensor.strides[3]) {}
};

// Whether neighbours in memory are channels of one pixel, rather than pixels of one channel. `other` decides for an
// image of one channel or one pixel, which says nothing.
inline bool has_channels_last(const Tensor& image, const Tensor& other) {
  const bool says = image.sizes[1] > 1 && image.sizes[2] * image.sizes[3] > 1;
  return says ? image.strides[1] == 1 : other.sizes[1] > 1 && other.strides[1] == 1;
}

}  // namespace bigkern
