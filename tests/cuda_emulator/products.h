// Narrow number formats, and the loads and products of small matrices by one warp.
#pragma once

#include "grid.h"

namespace emulator {

// Rounded to nearest even; NaN becomes the hardware's one NaN.
uint16_t half_of_float(float x);
uint16_t bfloat_of_float(float x);
float float_of_half(uint16_t bits);

inline float flush_subnormal(float x) {
  bool subnormal = x > -0x1p-126f && x < 0x1p-126f;
  return subnormal ? x * 0.0f : x;
}

enum class Product { kFloat16, kBfloat16, kTf32, kInt8 };

// One number of an operand's register, as a float (exact) or as an int.
int numbers_per_register(Product product);
float float_operand(Product product, uint32_t bits, int index);

// A floating sum as matrix instructions leave it: cut off, not rounded.
float toward_zero(double sum);

// ldmatrix.x4: lane l gives the address of row l % 8 of matrix l / 8.
void load_matrices(uint32_t* matrices, const void* row, bool transpose, Site site);

// mma.sync: d [16, 8] += a [16, k] @ b [k, 8], all in the fragments that ptx.cuh describes. d: 4 floats, or ints.
void warp_product(Product product, void* d, const uint32_t* a, const uint32_t* b, Site site);

}  // namespace emulator
