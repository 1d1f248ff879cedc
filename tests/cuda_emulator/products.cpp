#include "products.h"

#include <math.h>
#include <string.h>

#include "race.h"

namespace emulator {

// ---- numbers -------------------------------------------------------------------------------------------------------

static uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

static float float_of_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

uint16_t half_of_float(float x) {
  if (x != x) return 0x7FFF;
  uint16_t sign = uint16_t(bits_of(x) >> 16 & 0x8000);
  float magnitude = fabsf(x);
  if (magnitude >= 65520) return sign | 0x7C00;
  // One unit in the last place: 2^-10 of the leading bit, 2^-24 below the smallest normal number.
  int exponent = magnitude < 0x1p-14f ? -14 : ilogbf(magnitude);
  int units = int(rintf(ldexpf(magnitude, 10 - exponent)));
  // Rounding up to the next power of two carries into the exponent, as it should.
  int biased = magnitude < 0x1p-14f ? 0 : (exponent + 14) << 10;
  return uint16_t(sign | (biased + units));
}

float float_of_half(uint16_t bits) {
  int exponent = bits >> 10 & 31, mantissa = bits & 0x3FF;
  float magnitude;
  if (exponent == 31)
    magnitude = mantissa ? NAN : INFINITY;
  else if (exponent == 0)
    magnitude = float(mantissa) * 0x1p-24f;
  else
    magnitude = float_of_bits(uint32_t(exponent + 112) << 23 | uint32_t(mantissa) << 13);
  return bits & 0x8000 ? -magnitude : magnitude;
}

uint16_t bfloat_of_float(float x) {
  if (x != x) return 0x7FFF;
  uint32_t bits = bits_of(x);
  return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

int numbers_per_register(Product product) {
  switch (product) {
    case Product::kTf32: return 1;
    case Product::kInt8: return 4;
    default: return 2;
  }
}

float float_operand(Product product, uint32_t bits, int index) {
  switch (product) {
    case Product::kFloat16: return float_of_half(uint16_t(bits >> 16 * index));
    case Product::kBfloat16: return float_of_bits(bits >> 16 * index << 16);
    // The instruction does not look at the lowest 13 bits.
    case Product::kTf32: return float_of_bits(bits & 0xFFFFE000);
    case Product::kInt8: return float(int8_t(bits >> 8 * index));
  }
  return NAN;
}

float toward_zero(double sum) {
  float nearest = float(sum);
  if (isinf(nearest) || fabs(double(nearest)) <= fabs(sum)) return nearest;
  return float_of_bits(bits_of(nearest) - 1);
}

// ---- ldmatrix ------------------------------------------------------------------------------------------------------

void load_matrices(uint32_t* matrices, const void* row, bool transpose, Site site) {
  struct Operand {
    uint32_t* matrices;
    const void* row;
  } operand = {matrices, row};
  const char* what = transpose ? "ldmatrix_x4_trans" : "ldmatrix_x4";
  require_shared(what, row, 16, 16, site);
  warp_collective(what, 0xFFFFFFFF, operand, true, site, [&](Lanes<Operand> lanes) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t values[8][8];
      for (int i = 0; i < 8; ++i) {
        int lane = 8 * matrix + i;
        race_access(lanes[lane]->row, sizeof(values[i]), Access::kRead, site, thread_of_lane(lane));
        memcpy(values[i], lanes[lane]->row, sizeof(values[i]));
      }
      for (int lane = 0; lane < kLanes; ++lane) {
        int i = lane / 4, j = 2 * (lane % 4);
        uint32_t low = transpose ? values[j][i] : values[i][j];
        uint32_t high = transpose ? values[j + 1][i] : values[i][j + 1];
        lanes[lane]->matrices[matrix] = low | high << 16;
      }
    }
  });
}

// ---- mma.sync ------------------------------------------------------------------------------------------------------

struct ProductOperand {
  void* d;
  const uint32_t *a, *b;
};

// Register r of a lane with g = lane / 4, t = lane % 4 holds `per_register` neighbours in k: of a, row g or (odd r)
// g + 8, from column t * per_register on, or (r / 2 = 1) that plus half of k; of b, column g and rows alike.
struct Fragments {
  float a[16][32], b[32][8];

  Fragments(Product product, Lanes<ProductOperand> lanes) {
    int width = numbers_per_register(product);
    for (int lane = 0; lane < kLanes; ++lane) {
      int g = lane / 4, t = lane % 4;
      for (int i = 0; i < width; ++i) {
        int k = t * width + i;
        for (int r = 0; r < 4; ++r)
          a[g + r % 2 * 8][k + r / 2 * 4 * width] = float_operand(product, lanes[lane]->a[r], i);
        for (int r = 0; r < 2; ++r) b[k + r * 4 * width][g] = float_operand(product, lanes[lane]->b[r], i);
      }
    }
  }
};

void warp_product(Product product, void* d, const uint32_t* a, const uint32_t* b, Site site) {
  ProductOperand operand = {d, a, b};
  warp_collective("mma", 0xFFFFFFFF, operand, true, site, [&](Lanes<ProductOperand> lanes) {
    Fragments fragments(product, lanes);
    int depth = 8 * numbers_per_register(product);
    for (int row = 0; row < 16; ++row) {
      // Products of the narrow formats, and int8's sums, are exact in double.
      double sums[8] = {};
      for (int k = 0; k < depth; ++k)
        for (int column = 0; column < 8; ++column)
          sums[column] += double(fragments.a[row][k]) * double(fragments.b[k][column]);
      for (int column = 0; column < 8; ++column) {
        void* registers = lanes[4 * (row % 8) + column / 2]->d;
        int r = row / 8 * 2 + column % 2;
        if (product == Product::kInt8) {
          int& target = static_cast<int*>(registers)[r];
          target = int(uint32_t(target) + uint32_t(int(sums[column])));
        } else {
          float& target = static_cast<float*>(registers)[r];
          target = toward_zero(sums[column] + double(target));
        }
      }
    }
  });
}

}  // namespace emulator
