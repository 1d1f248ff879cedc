// Conversions, and matrix loads and products of one warp.
#include <common.cuh>

KERNEL convert_kernel(const float* input, uint16* half, uint16* bfloat, uint32* tf32, int* int8s, float* exp2s,
                      float* log2s, int64 count) {
  int64 i = int64(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  half[i] = from_float<float16>(input[i]).bits;
  bfloat[i] = from_float<bfloat16>(input[i]).bits;
  tf32[i] = to_tf32(input[i]);
  int8s[i] = round_to_int8(input[i]);
  exp2s[i] = exp2_approx(input[i]);
  log2s[i] = log2_approx(input[i]);
}

KERNEL widen_kernel(const float16* half, const bfloat16* bfloat, float* half_output, float* bfloat_output) {
  int64 i = int64(blockIdx.x) * blockDim.x + threadIdx.x;
  half_output[i] = to_float(half[i]);
  bfloat_output[i] = to_float(bfloat[i]);
}

// registers [2, 32, 4]: ldmatrix of input [32, 8], plain and transposed.
KERNEL ldmatrix_kernel(const uint16* input, uint32* registers) {
  __shared__ __align__(16) uint16 rows[32][8];
  int lane = threadIdx.x;
  for (int i = 0; i < 8; ++i) rows[lane][i] = input[lane * 8 + i];
  __syncwarp();
  uint32 plain[4], transposed[4];
  ldmatrix_x4(plain, rows[lane]);
  ldmatrix_x4_trans(transposed, rows[lane]);
  for (int i = 0; i < 4; ++i) {
    registers[lane * 4 + i] = plain[i];
    registers[kWarp * 4 + lane * 4 + i] = transposed[i];
  }
}

// d [32, 4] += the product of fragments a [32, 4] and b [32, 2], as they lie in each lane's registers.
template <class Number, class Multiply>
DEVICE void multiply_fragments(const uint32* a, const uint32* b, Number* d, Multiply multiply) {
  int lane = threadIdx.x;
  uint32 fragment_a[4], fragment_b[2];
  Number fragment_d[4];
  for (int i = 0; i < 4; ++i) fragment_a[i] = a[lane * 4 + i];
  for (int i = 0; i < 2; ++i) fragment_b[i] = b[lane * 2 + i];
  for (int i = 0; i < 4; ++i) fragment_d[i] = d[lane * 4 + i];
  multiply(fragment_d, fragment_a, fragment_b);
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = fragment_d[i];
}

KERNEL mma_float16_kernel(const uint32* a, const uint32* b, float* d) {
  multiply_fragments(a, b, d, [](auto& d, auto& a, auto& b) { mma_m16n8k16<float16>(d, a, b); });
}

KERNEL mma_bfloat16_kernel(const uint32* a, const uint32* b, float* d) {
  multiply_fragments(a, b, d, [](auto& d, auto& a, auto& b) { mma_m16n8k16<bfloat16>(d, a, b); });
}

KERNEL mma_tf32_kernel(const uint32* a, const uint32* b, float* d) {
  multiply_fragments(a, b, d, [](auto& d, auto& a, auto& b) { mma_m16n8k8_tf32(d, a, b); });
}

KERNEL mma_int8_kernel(const uint32* a, const uint32* b, int* d) {
  multiply_fragments(a, b, d, [](auto& d, auto& a, auto& b) { mma_m16n8k32_int8(d, a, b); });
}
