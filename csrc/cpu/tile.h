// Register-tiled matrix products on packed operands: the inner loops of attention.
//
// C[kTileRows x kPanel] += A * B, with A read by broadcast and B by vectors. Operands hold elements E: float, double,
// or bfloat16_pair, which is two neighbours along the reduction in one word. How they are packed stands in pack.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "simd.h"

#define BIGKERN_ALWAYS_INLINE inline __attribute__((always_inline))

// AVX512_BF16 is not part of any build: asked for at run time, and written so that old compilers take it.
#if defined(__AVX512F__) && (defined(__clang__) || __GNUC__ >= 10)
#define BIGKERN_BFLOAT16_PAIRS 1
#else
#define BIGKERN_BFLOAT16_PAIRS 0
#endif

namespace bigkern {

struct bfloat16_pair {
  uint32_t bits;
};

template <>
struct accumulate_type<bfloat16_pair> {
  using type = float;
};

inline bool processor_multiplies_bfloat16_pairs() {
#if BIGKERN_BFLOAT16_PAIRS
  static const bool supported = __builtin_cpu_supports("avx512bf16");
  return supported;
#else
  return false;
#endif
}

// Values along the reduction that one element holds.
template <class E>
constexpr int kDepth = std::is_same_v<E, bfloat16_pair> ? 2 : 1;

#if defined(__AVX512F__)
constexpr int kTileRows = 8;  // 16 of 32 registers hold sums: enough to hide the latency of two FMA units
#elif defined(__AVX2__)
constexpr int kTileRows = 6;  // 12 of 16 registers
#else
constexpr int kTileRows = 4;  // without FMA a product needs a register of its own
#endif

// Columns of one panel: two vectors of sums.
template <class E>
constexpr int kPanel = 2 * lanes<acc_t<E>>;

constexpr int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }
constexpr int64_t round_up(int64_t count, int64_t size) { return ceil_div(count, size) * size; }

template <class A>
BIGKERN_ALWAYS_INLINE void multiply_add(vec<A>& sum, A a, const A* b) {
  sum += broadcast(a) * load(b);
}
#if BIGKERN_BFLOAT16_PAIRS
BIGKERN_ALWAYS_INLINE void multiply_add(vec<float>& sum, bfloat16_pair a, const bfloat16_pair* b) {
  vec_u32 pairs_a = a.bits + vec_u32{}, pairs_b;
  std::memcpy(&pairs_b, b, sizeof(pairs_b));
  vec<float> next = sum;  // asm on an array's element would keep the array in memory
  asm("vdpbf16ps %2, %1, %0" : "+v"(next) : "v"(pairs_a), "v"(pairs_b));
  sum = next;
}
#endif

// sums[r][v] += sum over k < depth of a[r * kRowStride + k * kDepthStride] * b[k * kPanel + v * lanes].
template <class E, int kVectors, int kRowStride, int kDepthStride>
BIGKERN_ALWAYS_INLINE void multiply_tile(const E* a, const E* b, int64_t depth,
                                         vec<acc_t<E>> (&sums)[kTileRows][kVectors]) {
  constexpr int kLanes = lanes<acc_t<E>>;
  for (int64_t k = 0; k < depth; ++k, a += kDepthStride, b += kPanel<E>) {
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) multiply_add(sums[r][v], a[r * kRowStride], b + v * kLanes);
    }
  }
}

// Calls body(std::integral_constant<int, vectors>, first column) on tiles that cover `cols` columns.
template <class E, class Body>
BIGKERN_ALWAYS_INLINE void over_columns(int64_t cols, const Body& body) {
  for (int64_t col = 0; col < cols; col += kPanel<E>) {
    if (cols - col > lanes<acc_t<E>>)
      body(std::integral_constant<int, 2>{}, col);
    else
      body(std::integral_constant<int, 1>{}, col);
  }
}

}  // namespace bigkern
