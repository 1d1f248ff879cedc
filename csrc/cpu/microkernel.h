// The innermost product: a few rows of A times two vectors of B's columns, summed in registers over the whole depth.
//
// Both operands come packed (pack.h): step by step along the depth, kRowPitch values of A and the panel's columns of B.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

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

template <class A, int Rows, int Vectors>
void microkernel(int64_t steps, const A* a, const A* b, A* tile, int64_t tile_stride, bool add) {
  constexpr int kLanes = lanes<A>;
  vec<A> sum[Rows][Vectors] = {};
  for (int64_t step = 0; step < steps; ++step) {
    vec<A> columns[Vectors];
    for (int v = 0; v < Vectors; ++v) columns[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      vec<A> row = broadcast(a[r]);
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sum[r][v] += row * columns[v];
    }
    a += kRowPitch<A>;
    b += Vectors * kLanes;
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      A* place = tile + r * tile_stride + v * kLanes;
      store(place, add ? load(place) + sum[r][v] : sum[r][v]);
    }
  }
}

// AVX512_BF16 came later than the rest of this build's instructions: compiled apart, chosen when the CPU has it.
#if defined(__AVX512F__) && (defined(__clang__) || __GNUC__ >= 10)
#define BIGKERN_BFLOAT16_DOT 1
inline bool has_bfloat16_dot() {
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
}

template <int Rows, int Vectors>
__attribute__((target("avx512bf16"))) void microkernel_bfloat16(int64_t steps, const bfloat16_pair* a,
                                                                const bfloat16_pair* b, float* tile,
                                                                int64_t tile_stride, bool add) {
  constexpr int kLanes = lanes<float>;
  __m512 sum[Rows][Vectors];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) sum[r][v] = _mm512_setzero_ps();
  for (int64_t step = 0; step < steps; ++step) {
    __m512bh columns[Vectors];
    for (int v = 0; v < Vectors; ++v) columns[v] = (__m512bh)_mm512_loadu_si512(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      __m512bh row = (__m512bh)_mm512_set1_epi32(static_cast<int>(a[r].bits));
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], row, columns[v]);
    }
    a += kRowPitch<bfloat16_pair>;
    b += Vectors * kLanes;
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      float* place = tile + r * tile_stride + v * kLanes;
      _mm512_storeu_ps(place, add ? _mm512_add_ps(_mm512_loadu_ps(place), sum[r][v]) : sum[r][v]);
    }
}
#endif

template <class P, int Rows, int Vectors>
constexpr Microkernel<P> microkernel_for() {
#if defined(BIGKERN_BFLOAT16_DOT)
  if constexpr (std::is_same_v<P, bfloat16_pair>)
    return microkernel_bfloat16<Rows, Vectors>;
  else
#endif
    return microkernel<P, Rows, Vectors>;
}

template <class P, int... Index>
constexpr std::array<Microkernel<P>, sizeof...(Index)> microkernel_table(std::integer_sequence<int, Index...>) {
  return {microkernel_for<P, Index / kTileVectors + 1, Index % kTileVectors + 1>()...};
}

// The kernel for a tile of `rows` (1 to kTileRows) and `vectors` (1 or 2): none computes rows that nobody wants.
template <class P>
inline Microkernel<P> find_microkernel(int rows, int vectors) {
  static constexpr auto table = microkernel_table<P>(std::make_integer_sequence<int, kTileRows * kTileVectors>{});
  return table[(rows - 1) * kTileVectors + (vectors - 1)];
}

}  // namespace bigkern
