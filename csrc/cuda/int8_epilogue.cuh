// From sums of int8 products back to floating numbers.
#pragma once

#include <gemm_epilogue.cuh>

// Scales, then what `Epilogue` does.
template <class T>
struct Int8Epilogue {
  const float* input_scale;  // one a row; NaN where the row was not finite
  const float* weight_scale;
  int64 weight_scale_stride;
  Epilogue<T> epilogue;
  int64 M = epilogue.M, N = epilogue.N;
  bool vectors = epilogue.vectors;

  template <int count>
  DEVICE void finish(const int (&sums)[count], int64 row, int64 col) const {
    float row_scale = input_scale[row], z[count];
#pragma unroll
    for (int i = 0; i < count; ++i) {
      float col_scale = col + i < N ? weight_scale[(col + i) * weight_scale_stride] : 0.0f;
      z[i] = float(sums[i]) * (row_scale * col_scale);  // a row of huge values times its sum might overflow
    }
    epilogue.finish(z, row, col);
  }
};
