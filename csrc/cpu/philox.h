// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011), a vector at a
// time.
#pragma once

#include "simd.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace bigkern {

using vec_u64 = vec<uint64_t>;

// Lower 32 bits of each lane times `factor`, in 64 bits.
inline vec_u64 multiply_lower_halves(vec_u64 values, uint32_t factor) {
  vec_u64 factors = uint64_t{factor} + vec_u64{};
#if defined(__AVX512F__)
  return (vec_u64)_mm512_mul_epu32((__m512i)values, (__m512i)factors);
#elif defined(__AVX2__)
  return (vec_u64)_mm256_mul_epu32((__m256i)values, (__m256i)factors);
#elif defined(__SSE2__)
  return (vec_u64)_mm_mul_epu32((__m128i)values, (__m128i)factors);
#else
  return (values & 0xffffffffu) * factors;
#endif
}

struct PhiloxKey {
  uint32_t low, high;
  explicit PhiloxKey(int64_t seed) : low(uint32_t(uint64_t(seed))), high(uint32_t(uint64_t(seed) >> 32)) {}
};

// words[w][lane] is word w of the block whose counter is (counter0, counter1 + lane, counter2, counter3).
inline void philox4x32_10(PhiloxKey key, uint32_t counter0, uint32_t counter1, uint32_t counter2, uint32_t counter3,
                          vec_u32 (&words)[4]) {
  // Two states of 64-bit lanes, one for even and one for odd counters; only the lower halves of their lanes mean
  // anything, so that products need no masking.
  vec_u64 state[2][4];
  for (int odd = 0; odd < 2; ++odd) {
    state[odd][0] = counter0 + vec_u64{};
    for (int lane = 0; lane < lanes<uint64_t>; ++lane) state[odd][1][lane] = uint64_t{counter1} + 2 * lane + odd;
    state[odd][2] = counter2 + vec_u64{};
    state[odd][3] = counter3 + vec_u64{};
  }
  for (int round = 0; round < 10; ++round) {
    for (auto& c : state) {
      vec_u64 product0 = multiply_lower_halves(c[0], 0xD2511F53u), product1 = multiply_lower_halves(c[2], 0xCD9E8D57u);
      c[0] = (product1 >> 32) ^ c[1] ^ key.low;
      c[1] = product1;
      c[2] = (product0 >> 32) ^ c[3] ^ key.high;
      c[3] = product0;
    }
    key.low += 0x9E3779B9u;
    key.high += 0xBB67AE85u;
  }
  for (int w = 0; w < 4; ++w) words[w] = bit_cast<vec_u32>((state[0][w] & 0xffffffffu) | (state[1][w] << 32));
}

}  // namespace bigkern
