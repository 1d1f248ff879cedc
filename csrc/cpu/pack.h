// Packing: a strip of a matrix with any strides becomes a dense panel [step][pitch] that a microkernel reads in order.
//
// A strip is `width` rows of A (or columns of B) along the whole depth. Whichever of the two directions has unit stride
// is read in whole vectors; along the depth that means transposing in registers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "microkernel.h"
#include "simd.h"
#include "transpose.h"

namespace bigkern {

// `width` runs over rows of A or columns of B, `depth` over the dimension that is summed.
template <class T>
struct Strip {
  const T* data;
  int64_t width, depth;
  int64_t width_stride, depth_stride;
};

// ---- reading values as they are packed ------------------------------------------------------------------------------

// Converts to the accumulator's type on the way.
template <class T>
struct WidenReader {
  using packed = acc_t<T>;
  using vector = vec<packed>;
  static packed one(const Strip<T>& strip, int64_t w, int64_t step) {
    return to_acc(strip.data[w * strip.width_stride + step * strip.depth_stride]);
  }
  // Consecutive steps of one row; `count` of them.
  static vector along_depth(const Strip<T>& strip, int64_t w, int64_t step, int64_t count) {
    const T* from = strip.data + w * strip.width_stride + step;
    return count >= lanes<packed> ? load(from) : load_partial(from, count);
  }
  // One step of consecutive rows.
  static vector along_width(const Strip<T>& strip, int64_t w, int64_t step, int64_t count) {
    const T* from = strip.data + w + step * strip.depth_stride;
    return count >= lanes<packed> ? load(from) : load_partial(from, count);
  }
};

// Joins two neighbouring depths; beyond an odd depth stands a zero.
struct PairReader {
  using packed = bfloat16_pair;
  using vector = vec_u32;
  static packed one(const Strip<bfloat16>& strip, int64_t w, int64_t step) {
    const bfloat16* from = strip.data + w * strip.width_stride + 2 * step * strip.depth_stride;
    uint32_t high = 2 * step + 1 < strip.depth ? from[strip.depth_stride].bits : 0;
    return {from[0].bits | high << 16};
  }
  static vector along_depth(const Strip<bfloat16>& strip, int64_t w, int64_t step, int64_t count) {
    const bfloat16* from = strip.data + w * strip.width_stride + 2 * step;
    int64_t values = std::min(2 * count, strip.depth - 2 * step);
    vector pairs = {};
    if (values >= 2 * lanes<uint32_t>)
      std::memcpy(&pairs, from, sizeof(pairs));
    else
      std::memcpy(&pairs, from, static_cast<size_t>(values) * sizeof(bfloat16));
    return pairs;
  }
  static vector along_width(const Strip<bfloat16>& strip, int64_t w, int64_t step, int64_t count) {
    const bfloat16* from = strip.data + w + 2 * step * strip.depth_stride;
    size_t bytes = static_cast<size_t>(count) * sizeof(bfloat16);
    vec_u16 low = {}, high = {};
    bool has_high = 2 * step + 1 < strip.depth;
    if (count >= lanes<uint32_t>) {
      std::memcpy(&low, from, sizeof(low));
      if (has_high) std::memcpy(&high, from + strip.depth_stride, sizeof(high));
    } else {
      std::memcpy(&low, from, bytes);
      if (has_high) std::memcpy(&high, from + strip.depth_stride, bytes);
    }
    return __builtin_convertvector(low, vec_u32) | __builtin_convertvector(high, vec_u32) << 16;
  }
};

// ---- packing a panel ------------------------------------------------------------------------------------------------

// One square of lanes x lanes values, read along the depth and written along the width. Not `full`: `rows` and `steps`
// of them exist, the rest is zero.
template <class Reader, bool full, class T>
inline void pack_square(const Strip<T>& strip, int64_t w, int64_t rows, int64_t step, int64_t steps, int pitch,
                        typename Reader::packed* to) {
  using V = typename Reader::vector;
  constexpr int kLanes = vector_lanes<V>;
  V square[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    square[i] = full || i < rows ? Reader::along_depth(strip, w + i, step, full ? kLanes : steps) : V{};
  transpose(square);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (full || i < steps) std::memcpy(to + i * pitch, &square[i], sizeof(V));
}

// Fills panel[step][w] for all steps and for w < pitch (a multiple of the vector); what lies beyond the strip is zero.
template <class Reader, class T>
void pack_panel(const Strip<T>& strip, int pitch, typename Reader::packed* panel) {
  using P = typename Reader::packed;
  using V = typename Reader::vector;
  constexpr int kLanes = packed_lanes<P>;
  constexpr int kDepth = packed_traits<P>::depth;
  const int64_t steps = (strip.depth + kDepth - 1) / kDepth, full_steps = strip.depth / kDepth;

  if (strip.depth_stride == 1) {
    for (int64_t w = 0; w < pitch; w += kLanes) {
      const int64_t rows = strip.width - w;
      int64_t step = 0;
      if (rows >= kLanes)
        for (; step + kLanes <= full_steps; step += kLanes)
          pack_square<Reader, true>(strip, w, rows, step, kLanes, pitch, panel + step * pitch + w);
      for (; step < steps; step += kLanes)
        pack_square<Reader, false>(strip, w, rows, step, std::min<int64_t>(kLanes, steps - step), pitch,
                                   panel + step * pitch + w);
    }
  } else if (strip.width_stride == 1) {
    for (int64_t w = 0; w < pitch; w += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, std::max<int64_t>(strip.width - w, 0));
      for (int64_t step = 0; step < steps; ++step) {
        V values = count == kLanes ? Reader::along_width(strip, w, step, kLanes)
                   : count > 0     ? Reader::along_width(strip, w, step, count)
                                   : V{};
        std::memcpy(panel + step * pitch + w, &values, sizeof(values));
      }
    }
  } else {
    for (int64_t step = 0; step < steps; ++step)
      for (int64_t w = 0; w < pitch; ++w) panel[step * pitch + w] = w < strip.width ? Reader::one(strip, w, step) : P{};
  }
}

}  // namespace bigkern
