#include "microkernel.h"

#include <array>
#include <type_traits>
#include <utility>

namespace bigkern {
namespace {

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

#if defined(BIGKERN_BFLOAT16_DOT)

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

template <class P>
Microkernel<P> from_table(int rows, int vectors) {
  static constexpr auto table = microkernel_table<P>(std::make_integer_sequence<int, kTileRows * kTileVectors>{});
  return table[(rows - 1) * kTileVectors + (vectors - 1)];
}

}  // namespace

template <>
Microkernel<float> find_microkernel<float>(int rows, int vectors) {
  return from_table<float>(rows, vectors);
}
template <>
Microkernel<double> find_microkernel<double>(int rows, int vectors) {
  return from_table<double>(rows, vectors);
}
#if defined(BIGKERN_BFLOAT16_DOT)
template <>
Microkernel<bfloat16_pair> find_microkernel<bfloat16_pair>(int rows, int vectors) {
  return from_table<bfloat16_pair>(rows, vectors);
}
#endif

}  // namespace bigkern
