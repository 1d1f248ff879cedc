// Dropout of the rows of a matrix; the mask is that of bigkern/reference/philox.py: dropout_keep_rows.
#pragma once

#include "../tensor.h"
#include "philox.h"
#include "transpose.h"

namespace bigkern {

struct RowDropout {
  bool active = false;
  PhiloxKey key{0};
  uint32_t offset = 0, threshold = 0;
  double keep_scale = 1;

  RowDropout(const Tensor& rng_state, double dropout_p) {
    if (!rng_state.defined()) return;
    const int64_t* state = rng_state.as<int64_t>();
    active = true;
    key = PhiloxKey(state[0]);
    offset = static_cast<uint32_t>(static_cast<uint64_t>(state[rng_state.strides[0]]));
    threshold = static_cast<uint32_t>(dropout_p * 0x1p32);
    keep_scale = 1 / (1 - dropout_p);
  }

  // Columns that one call of the generator covers: four words from each lane.
  static constexpr int kColumns = 4 * lanes<uint32_t>;

  // What the columns of [begin, begin + count) are multiplied with: 0, or 1 / (1 - dropout_p). `begin` is a multiple of
  // 4; whole groups of kColumns are written.
  template <class A>
  void factors(int64_t row, int64_t begin, int64_t count, A* values) const {
    using Lanes = std::make_integer_sequence<int, lanes<uint32_t>>;
    constexpr int kHalf = lanes<uint32_t> / 2;
    A scale = static_cast<A>(keep_scale);
    for (int64_t i = 0; i < count; i += kColumns) {
      vec_u32 words[4];
      philox4x32_10(key, static_cast<uint32_t>(row), static_cast<uint32_t>((begin + i) / 4),
                    static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32), offset, words);
      // Word w of lane l belongs to column 4 l + w: riffle them together.
      vec_u32 even[2] = {interleave<0>(words[0], words[2], Lanes{}), interleave<kHalf>(words[0], words[2], Lanes{})};
      vec_u32 odd[2] = {interleave<0>(words[1], words[3], Lanes{}), interleave<kHalf>(words[1], words[3], Lanes{})};
      uint32_t columns[kColumns];
      for (int h = 0; h < 2; ++h) {
        vec_u32 low = interleave<0>(even[h], odd[h], Lanes{}), high = interleave<kHalf>(even[h], odd[h], Lanes{});
        std::memcpy(columns + 2 * h * lanes<uint32_t>, &low, sizeof(low));
        std::memcpy(columns + (2 * h + 1) * lanes<uint32_t>, &high, sizeof(high));
      }
      for (int c = 0; c < kColumns; ++c) values[i + c] = columns[c] >= threshold ? scale : A(0);
    }
  }
};

}  // namespace bigkern
