// Transposing squares of values in registers.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "simd.h"

namespace bigkern {

template <class V>
constexpr int vector_lanes = kVectorBytes / static_cast<int>(sizeof(std::declval<V>()[0]));

// {a[from], b[from], a[from + 1], b[from + 1], ...}
template <int from, class V, int... Lane>
inline V interleave(V a, V b, std::integer_sequence<int, Lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (from + Lane / 2 + Lane % 2 * vector_lanes<V>)...);
#else
  using Index = std::conditional_t<sizeof(a[0]) == 8, int64_t, int32_t>;
  return __builtin_shuffle(a, b, vec<Index>{(from + Lane / 2 + Lane % 2 * vector_lanes<V>)...});
#endif
}

// Riffling the two halves of the rows into each other log2(lanes) times transposes the square.
template <class V>
inline void transpose(V* rows) {
  constexpr int kLanes = vector_lanes<V>;
  using Lanes = std::make_integer_sequence<int, kLanes>;
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    V riffled[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      riffled[2 * i] = interleave<0>(rows[i], rows[i + kLanes / 2], Lanes{});
      riffled[2 * i + 1] = interleave<kLanes / 2>(rows[i], rows[i + kLanes / 2], Lanes{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = riffled[i];
  }
}

// sums[i] = the sum of vectors[i]'s lanes: transposed, a whole vector of sums is one addition of vectors at a time.
template <int count, class V, class A>
inline void sum_of_lanes(const V* vectors, A* sums) {
  constexpr int kLanes = vector_lanes<V>;
#pragma GCC unroll 16
  for (int first = 0; first < count; first += kLanes) {
    V square[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) square[i] = first + i < count ? vectors[first + i] : V{};
    transpose(square);
#pragma GCC unroll 4
    for (int half = kLanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
      for (int i = 0; i < half; ++i) square[i] += square[i + half];
    std::memcpy(sums + first, &square[0], sizeof(A) * (count - first < kLanes ? count - first : kLanes));
  }
}

}  // namespace bigkern
