// The innermost product: a few rows of A times two vectors of B's columns, summed in registers over the whole depth.
//
// Both operands come packed (pack.h): step by step along the depth, kRowPitch values of A and the panel's columns of B.
#pragma once

#include <cstdint>

#include "simd.h"

namespace bigkern {

// Accumulators, one vector of A and the columns' vectors of B must fit the registers: 32 with AVX-512, else 16.
#if defined(__AVX512F__)
constexpr int kTileRows = 14;
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;  // no fused multiply-add: products need registers too
#endif
constexpr int kTileVectors = 2;

// A pair of bfloat16 values from neighbouring depths, as the dot-product instruction takes them.
struct bfloat16_pair {
  uint32_t bits;
};

// What a packed value is: how it accumulates, and how many steps of the depth it holds.
template <class P>
struct packed_traits {
  using accumulator = P;
  static constexpr int depth = 1;
};
template <>
struct packed_traits<bfloat16_pair> {
  using accumulator = float;
  static constexpr int depth = 2;
};

template <class P>
constexpr int packed_lanes = kVectorBytes / static_cast<int>(sizeof(P));
template <class P>
constexpr int kTileColumns = kTileVectors * packed_lanes<P>;
// Panels of A are stored with whole vectors, so that packing needs no partial stores.
template <class P>
constexpr int kRowPitch = (kTileRows + packed_lanes<P> - 1) / packed_lanes<P> * packed_lanes<P>;

// tile[r][c] (+)= sum over steps of a[step][r] * b[step][c].
template <class P>
using Microkernel = void (*)(int64_t steps, const P* a, const P* b, typename packed_traits<P>::accumulator* tile,
                             int64_t tile_stride, bool add);

// AVX512_BF16 came later than the rest of this build's instructions: compiled apart, chosen when the CPU has it.
#if defined(__AVX512F__) && (defined(__clang__) || __GNUC__ >= 10)
#define BIGKERN_BFLOAT16_DOT 1
inline bool has_bfloat16_dot() {
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
}
#endif

// The kernel for a tile of `rows` (1 to kTileRows) and `vectors` (1 or 2): none computes rows that nobody wants.
// Compiled in one place (microkernel.cpp) for all that multiply.
template <class P>
Microkernel<P> find_microkernel(int rows, int vectors);

template <>
Microkernel<float> find_microkernel<float>(int rows, int vectors);
template <>
Microkernel<double> find_microkernel<double>(int rows, int vectors);
#if defined(BIGKERN_BFLOAT16_DOT)
template <>
Microkernel<bfloat16_pair> find_microkernel<bfloat16_pair>(int rows, int vectors);
#endif

}  // namespace bigkern
