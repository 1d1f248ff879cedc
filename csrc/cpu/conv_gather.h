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
  if (count >= kChunk / 2) {
    std::memcpy(to, from, 16);
    count -= kChunk / 2, to += kChunk / 2, from += kChunk / 2;
  }
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
  static constexpr int64_t kSteps = 64, kFewSteps = 16;  // gathered at a time: the block stays in L1
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
    whole_ = merge_rows();
    if (channels_last_ && w_.tap_offset == 1 && image_.channel_stride == 1 && image_.col_stride == channels_)
      taps_per_run_ = w_.taps;
    for (int64_t tap = 0; tap < w_.taps; ++tap) {
      const int64_t place = w_.tap_place(tap);
      const int64_t begin = place < 0 ? (-place + w_.step - 1) / w_.step : 0;
      const int64_t end = w_.source_size > place ? (w_.source_size - place - 1) / w_.step + 1 : 0;
      inside_.push_back({std::min(begin, w_.positions), std::max(std::min(end, w_.positions), int64_t{0})});
    }
  }

  int64_t width() const override { return pixels_along_depth_ ? channels_ * h_.taps * w_.taps : pixels_; }
  int64_t depth() const override { return pixels_along_depth_ ? pixels_ : channels_ * h_.taps * w_.taps; }
  // A few at a time where memory runs across the depth: whole rows are read, not strips of them.
  int64_t packing_steps(int64_t count) const override {
    return std::min(count, channels_last_ == pixels_along_depth_ ? kFewSteps : kSteps);
  }

  void pack(int64_t first, int64_t width, int64_t step, int64_t steps, int64_t pitch, P* panel) const override {
    T block[kWidth * kSteps * kDepth];
    const int64_t first_depth = step * kDepth, depth = std::min(steps * kDepth, this->depth() - first_depth);
    const int64_t pixel = (pixels_along_depth_ ? first_depth : first) + first_pixel_;
    const int64_t pixels = pixels_along_depth_ ? depth : width;
    const int64_t k = pixels_along_depth_ ? first : first_depth, ks = pixels_along_depth_ ? width : depth;
    Strip<T> strip = {block, width, depth, 1, 1};
    const int64_t image = pixel / w_.positions;
    if (whole_ && (pixel + pixels - 1) / w_.positions == image) {  // a matrix already
      strip.data = image_.data + image * image_.batch_stride + pixel % w_.positions * image_.col_stride +
                   k * image_.channel_stride;
      strip.width_stride = pixels_along_depth_ ? image_.channel_stride : image_.col_stride;
      strip.depth_stride = pixels_along_depth_ ? image_.col_stride : image_.channel_stride;
    } else {
      if (channels_last_)
        gather_channels(pixel, pixels, k, ks, block);
      else
        gather_pixels(pixel, pixels, k, ks, block);
      // A line of the block runs along the depth, or across it.
      (channels_last_ != pixels_along_depth_ ? strip.width_stride : strip.depth_stride) =
          channels_last_ != pixels_along_depth_ ? depth : width;
    }
    pack_panel<Reader>(strip, static_cast<int>(pitch), panel);
  }

 private:
  struct Range {
    int64_t begin, end;
  };

  // A kernel of one pixel without padding or stride meets every row whole: all rows are then one long row.
  bool merge_rows() {
    const bool whole = h_.taps * w_.taps == 1 && h_.offset == 0 && w_.offset == 0 && h_.step == 1 && w_.step == 1;
    if (!whole || h_.positions != h_.source_size || w_.positions != w_.source_size ||
        image_.row_stride != w_.source_size * image_.col_stride)
      return false;
    w_.positions = w_.source_size = h_.positions * w_.positions;
    h_.positions = h_.source_size = 1;
    return true;
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

  // block[pixel][k]; k counts taps, and for each of them the channels. Neighbouring taps of a row are one run of memory
  // where nothing lies between their pixels.
  void gather_channels(int64_t first, int64_t pixels, int64_t k, int64_t ks, T* to) const {
    Pixel at = pixel_at(first);
    const int64_t run_length = taps_per_run_ * channels_, runs_per_row = w_.taps / taps_per_run_;
    const int64_t first_run = k / run_length, first_place = k % run_length;
    for (; pixels > 0; --pixels) {
      int64_t place = first_place, tap_w = first_run % runs_per_row, tap_h = first_run / runs_per_row;
      const T* image = image_.data + at.n * image_.batch_stride;
      for (int64_t left = ks; left > 0;) {
        const int64_t run = std::min(left, run_length - place);
        const int64_t row = at.y * h_.step + h_.tap_place(tap_h), col = at.x * w_.step + w_.tap_place(tap_w);
        // Of the run's pixels, those inside of the image.
        const int64_t inside_begin = std::min(std::max<int64_t>(-col, 0), taps_per_run_) * channels_;
        const int64_t inside_end = std::max(std::min(w_.source_size - col, taps_per_run_), int64_t{0}) * channels_;
        int64_t begin = std::max(inside_begin, place), end = std::min(inside_end, place + run);
        if (row < 0 || row >= h_.source_size || begin >= end) begin = end = place + run;
        clear_run(to, begin - place);
        copy_strided(to + begin - place,
                     image + row * image_.row_stride + col * image_.col_stride + begin * image_.channel_stride,
                     end - begin, image_.channel_stride);
        clear_run(to + end - place, place + run - end);
        to += run;
        left -= run;
        place = 0;
        if (++tap_w == runs_per_row) tap_w = 0, ++tap_h;
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
  bool whole_ = false;         // one long row, whose pixels are met one by one
  int64_t taps_per_run_ = 1;   // of a row, for channels_last
  std::vector<Range> inside_;  // for each tap of a row, the positions that it meets inside the source
};

}  // namespace bigkern
