// The image side of a convolution's product: packs the values that pixels and taps meet, straight from the image.
//
// One direction of this operand runs over pixels of the result (n, y, x), the other over pairs of a channel and a tap
// of the kernel. Lines of it that lie together in memory are copied into a small block, with zeros for the padding, and
// that block is packed as a matrix: (channel, tap) apart, pixels together where the image is contiguous; pixels apart,
// channels of a tap together where it is channels_last.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "conv_axis.h"
#include "pack.h"

namespace bigkern {

// One side of a product, whatever it is: the product itself is then compiled once per type of packed values.
template <class P>
struct AnyOperand {
  virtual ~AnyOperand() = default;
  virtual int64_t width() const = 0;
  virtual int64_t depth() const = 0;
  virtual int64_t packing_steps(int64_t count) const = 0;
  virtual void pack(int64_t first, int64_t width, int64_t step, int64_t steps, int64_t pitch, P* panel) const = 0;
};

// Short runs, of sizes not known in advance: a call to memcpy would cost more than the copy.
template <class T>
inline void copy_run(T* to, const T* from, int64_t count) {
  constexpr int64_t kChunk = 32 / sizeof(T);
  for (; count >= kChunk; count -= kChunk, to += kChunk, from += kChunk) std::memcpy(to, from, 32);
  for (; count > 0; --count) *to++ = *from++;
}
template <class T>
inline void copy_strided(T* to, const T* from, int64_t count, int64_t stride) {
  if (stride == 1) return copy_run(to, from, count);
  for (int64_t i = 0; i < count; ++i) to[i] = from[i * stride];
}
template <class T>
inline void clear_run(T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = T{};
}

template <class Reader, class T>
class GatherOperand final : public AnyOperand<typename Reader::packed> {
  using P = typename Reader::packed;
  static constexpr int64_t kDepth = packed_traits<P>::depth;
  static constexpr int64_t kSteps = 64;  // gathered at a time: the block stays in L1
  static constexpr int64_t kWidth = std::max(kTileColumns<P>, kRowPitch<P>);

 public:
  // Pixels first_pixel, ..., first_pixel + pixels - 1 of the result, in all images of the batch.
  GatherOperand(const Image<const T>& image, int64_t channels, const Axes& axes, bool channels_last,
                bool pixels_along_depth, int64_t first_pixel, int64_t pixels)
      : image_(image),
        channels_(channels),
        h_(axes.h),
        w_(axes.w),
        channels_last_(channels_last),
        pixels_along_depth_(pixels_along_depth),
        first_pixel_(first_pixel),
        pixels_(pixels) {
    merge_rows();
    for (int64_t tap = 0; tap < w_.taps; ++tap) {
      const int64_t place = w_.tap_place(tap);
      const int64_t begin = place < 0 ? (-place + w_.step - 1) / w_.step : 0;
      const int64_t end = w_.source_size > place ? (w_.source_size - place - 1) / w_.step + 1 : 0;
      inside_.push_back({std::min(begin, w_.positions), std::max(std::min(end, w_.positions), int64_t{0})});
    }
  }

  int64_t width() const override { return pixels_along_depth_ ? channels_ * h_.taps * w_.taps : pixels_; }
  int64_t depth() const override { return pixels_along_depth_ ? pixels_ : channels_ * h_.taps * w_.taps; }
  int64_t packing_steps(int64_t count) const override { return std::min(count, kSteps); }

  void pack(int64_t first, int64_t width, int64_t step, int64_t steps, int64_t pitch, P* panel) const override {
    T block[kWidth * kSteps * kDepth];
    const int64_t first_depth = step * kDepth, depth = std::min(steps * kDepth, this->depth() - first_depth);
    const int64_t pixel = (pixels_along_depth_ ? first_depth : first) + first_pixel_;
    const int64_t pixels = pixels_along_depth_ ? depth : width;
    const int64_t k = pixels_along_depth_ ? first : first_depth, ks = pixels_along_depth_ ? width : depth;
    if (channels_last_)
      gather_channels(pixel, pixels, k, ks, block);
    else
      gather_pixels(pixel, pixels, k, ks, block);
    // A line of the block runs along the depth, or across it.
    const bool lines_along_depth = channels_last_ != pixels_along_depth_;
    Strip<T> strip = {block, width, depth, lines_along_depth ? depth : 1, lines_along_depth ? 1 : width};
    pack_panel<Reader>(strip, static_cast<int>(pitch), panel);
  }

 private:
  struct Range {
    int64_t begin, end;
  };

  // A kernel of one pixel without padding or stride meets every row whole: all rows are then one long row.
  void merge_rows() {
    const bool whole = h_.taps * w_.taps == 1 && h_.offset == 0 && w_.offset == 0 && h_.step == 1 && w_.step == 1;
    if (!whole || h_.positions != h_.source_size || w_.positions != w_.source_size ||
        image_.row_stride != w_.source_size * image_.col_stride)
      return;
    w_.positions = w_.source_size = h_.positions * w_.positions;
    h_.positions = h_.source_size = 1;
  }

  // Where a pixel of the result stands.
  struct Pixel {
    int64_t n, y, x;
  };
  Pixel pixel_at(int64_t index) const {
    const int64_t row = index / w_.positions;
    return {row / h_.positions, row % h_.positions, index % w_.positions};
  }

  // block[k][pixel]; k counts channels, and for each of them the taps.
  void gather_pixels(int64_t first, int64_t pixels, int64_t k, int64_t ks, T* to) const {
    const Pixel start = pixel_at(first);
    int64_t tap_w = k % w_.taps, tap_h = k / w_.taps % h_.taps, channel = k / w_.taps / h_.taps;
    const int64_t stride = w_.step * image_.col_stride;
    for (; ks > 0; --ks) {
      const T* plane = image_.data + channel * image_.channel_stride + w_.tap_place(tap_w) * image_.col_stride;
      const Range inside = inside_[tap_w];
      Pixel at = start;
      for (int64_t left = pixels; left > 0;) {
        const int64_t run = std::min(left, w_.positions - at.x), row = at.y * h_.step + h_.tap_place(tap_h);
        int64_t begin = std::max(inside.begin, at.x), end = std::min(inside.end, at.x + run);
        if (row < 0 || row >= h_.source_size || begin >= end) begin = end = at.x + run;
        clear_run(to, begin - at.x);
        copy_strided(to + begin - at.x, plane + at.n * image_.batch_stride + row * image_.row_stride + begin * stride,
                     end - begin, stride);
        clear_run(to + end - at.x, at.x + run - end);
        to += run;
        left -= run;
        at.x = 0;
        if (++at.y == h_.positions) at = {at.n + 1, 0, 0};
      }
      if (++tap_w == w_.taps) {
        tap_w = 0;
        if (++tap_h == h_.taps) tap_h = 0, ++channel;
      }
    }
  }

  // block[pixel][k]; k counts taps, and for each of them the channels.
  void gather_channels(int64_t first, int64_t pixels, int64_t k, int64_t ks, T* to) const {
    Pixel at = pixel_at(first);
    const int64_t tap = k / channels_, first_channel = k % channels_;
    const int64_t first_w = tap % w_.taps, first_h = tap / w_.taps;
    for (; pixels > 0; --pixels) {
      int64_t channel = first_channel, tap_w = first_w, tap_h = first_h;
      const T* image = image_.data + at.n * image_.batch_stride;
      for (int64_t left = ks; left > 0;) {
        const int64_t run = std::min(left, channels_ - channel);
        const int64_t row = at.y * h_.step + h_.tap_place(tap_h), col = at.x * w_.step + w_.tap_place(tap_w);
        if (row < 0 || row >= h_.source_size || col < 0 || col >= w_.source_size)
          clear_run(to, run);
        else
          copy_strided(to, image + row * image_.row_stride + col * image_.col_stride + channel * image_.channel_stride,
                       run, image_.channel_stride);
        to += run;
        left -= run;
        channel = 0;
        if (++tap_w == w_.taps) tap_w = 0, ++tap_h;
      }
      if (++at.x == w_.positions) {
        at.x = 0;
        if (++at.y == h_.positions) at = {at.n + 1, 0, 0};
      }
    }
  }

  const Image<const T> image_;
  const int64_t channels_;
  Axis h_, w_;
  const bool channels_last_, pixels_along_depth_;
  const int64_t first_pixel_, pixels_;
  std::vector<Range> inside_;  // for each tap of a row, the positions that it meets inside the source
};

}  // namespace bigkern
