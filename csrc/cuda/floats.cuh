// Floats and the 16 bytes of T that hold them in memory: one access each way, whatever the compiler makes of their
// parts.
#pragma once

#include <common.cuh>

// Number i of those in 16 bytes.
template <class T>
DEVICE float number_in(const uint32 (&words)[4], int i) {
  if constexpr (sizeof(T) == 4)
    return __uint_as_float(words[i]);
  else
    return to_float(T{uint16(words[i / 2] >> i % 2 * 16)});
}

// Word i of the 16 bytes that begin with value `first`.
template <class T, int width>
DEVICE uint32 word_of(const float (&values)[width], int first, int i) {
  if constexpr (sizeof(T) == 4)
    return __float_as_uint(values[first + i]);
  else
    return pack<T>(values[first + 2 * i], values[first + 2 * i + 1]);
}

// One number, or as many accesses of 16 bytes as `width` numbers of T take.
template <int width, class T>
DEVICE void load_floats(float (&values)[width], const T* pointer) {
  if constexpr (width == 1) {
    values[0] = to_float(*pointer);
  } else {
#pragma unroll
    for (int first = 0; first < width; first += kWidest<T>) {
      uint32 words[4];
      load_16(words, pointer + first);
#pragma unroll
      for (int i = 0; i < kWidest<T>; ++i) values[first + i] = number_in<T>(words, i);
    }
  }
}

template <int width, class T>
DEVICE void store_floats(T* pointer, const float (&values)[width]) {
  if constexpr (width == 1) {
    *pointer = from_float<T>(values[0]);
  } else {
#pragma unroll
    for (int first = 0; first < width; first += kWidest<T>) {
      uint32 words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = word_of<T>(values, first, i);
      store_16(pointer + first, words);
    }
  }
}
