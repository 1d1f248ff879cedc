// Philox4x32-10, the counter-based random generator of dropout (Salmon et al., "Parallel Random Numbers: As Easy as 1,
// 2, 3", SC 2011); bigkern/reference/philox.py says what is drawn for what.
#pragma once

#include <common.cuh>

// Bit i: whether word i that counter (c0, c1, c2, c3) and key (k0, k1) draw is at least `threshold`.
DEVICE uint32 words_at_least(uint32 threshold, uint32 c0, uint32 c1, uint32 c2, uint32 c3, uint32 k0, uint32 k1) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32 high_0 = __umulhi(0xD2511F53u, c0), low_0 = 0xD2511F53u * c0;
    const uint32 high_1 = __umulhi(0xCD9E8D57u, c2), low_1 = 0xCD9E8D57u * c2;
    c0 = high_1 ^ c1 ^ k0;
    c1 = low_1;
    c2 = high_0 ^ c3 ^ k1;
    c3 = low_0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return uint32(c0 >= threshold) | uint32(c1 >= threshold) << 1 | uint32(c2 >= threshold) << 2 |
         uint32(c3 >= threshold) << 3;
}
