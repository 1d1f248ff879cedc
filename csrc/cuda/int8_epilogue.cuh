// From sums of int8 products back to floating numbers.
#pragma once

#include <gemm_epilogue.cuh>

struct Scales {
  const float* input_scale;  // one a row; NaN where the row was not finite
  const float* weight_scale;
  int64 weight_scale_stride;

  DEVICE void dequantize(float (&z)[kPiece], const int (&sums)[kPiece], int64 row, int64 col, int64 N) const {
    float row_scale = input_scale[row];
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
      float col_scale = col + i < N ? weight_scale[(col + i) * weight_scale_stride] : 0.0f;
      z[i] = float(sums[i]) * (row_scale * col_scale);  // a row of huge values times its sum might overflow
    }
  }
};
