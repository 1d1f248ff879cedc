// The permutation of 16-byte pieces that keeps columns of a matrix in different banks.
#pragma once

#include <stdint.h>

namespace emulator {

// Address bits 4 up to 6 (128), 5 (64) or 4 (32 bytes) are exclusive-or'ed with those from 7 on. `span` 0: none.
inline char* swizzled(char* address, int span) {
  if (!span) return address;
  uintptr_t bits = reinterpret_cast<uintptr_t>(address);
  uintptr_t pieces = uintptr_t(span / 16);
  return reinterpret_cast<char*>(bits ^ (bits >> 7 & (pieces - 1)) << 4);
}

}  // namespace emulator
