// Each kernel does one thing that must be caught.
#include <common.cuh>

KERNEL store_beyond_global_kernel(float* output, int64 count) { output[count] = 1; }

KERNEL load_before_global_kernel(const float* input, float* output) { output[0] = input[-1]; }

KERNEL store_beyond_static_kernel(float* output, int64 index) {
  __shared__ float small[12];
  __shared__ float other[12];
  other[threadIdx.x] = 0;
  float* pointer = small;
  pointer[index] = 1;
  output[threadIdx.x] = other[threadIdx.x];
}

KERNEL store_beyond_dynamic_kernel(float* output, int64 index) {
  DYNAMIC_SHARED(memory);
  reinterpret_cast<float*>(memory)[index] = 1;
  output[0] = 1;
}

KERNEL misaligned_vector_kernel(const float* input, float* output) { output[0] = load_vector<4>(input + 1).values[0]; }

KERNEL misaligned_copy_kernel(const float* input) {
  __shared__ __align__(16) float row[8];
  cp_async_16(row + 1, input);
}

KERNEL missing_barrier_kernel(float* output) {
  __shared__ float numbers[64];
  numbers[threadIdx.x] = threadIdx.x;
  output[threadIdx.x] = numbers[63 - threadIdx.x];
}

KERNEL missing_wait_kernel(const float* input, float* output) {
  __shared__ __align__(16) float row[128];
  cp_async_16(row + 4 * threadIdx.x, input + 4 * threadIdx.x);
  cp_async_commit();
  __syncwarp();
  for (int i = 0; i < 4; ++i) output[4 * threadIdx.x + i] = row[4 * threadIdx.x + i];
}

KERNEL deadlock_kernel(float* output) {
  if (threadIdx.x < 32) named_barrier_sync(3, 96);
  __syncthreads();
  output[0] = 1;
}

KERNEL divergent_shuffle_kernel(float* output) {
  float x = 1;
  if (threadIdx.x < 16)
    x = __shfl_xor_sync(kAllLanes, x, 1);
  else
    x = __shfl_sync(kAllLanes, x, 1);
  output[threadIdx.x] = x;
}

KERNEL divergent_barrier_kernel(float* output) {
  if (threadIdx.x < 16)
    __syncthreads();
  else
    __syncthreads();
  output[threadIdx.x] = 1;
}

KERNEL shuffle_from_exited_kernel(int* output) {
  if (threadIdx.x >= 20) return;
  output[threadIdx.x] = __shfl_sync(kAllLanes, int(threadIdx.x), 25);
}

KERNEL uninitialised_kernel(float* output) {
  __shared__ float numbers[2];
  DYNAMIC_SHARED(memory);
  output[0] = numbers[1];
  output[1] = reinterpret_cast<float*>(memory)[3];
  numbers[1] = 1;
  reinterpret_cast<float*>(memory)[3] = 1;
}

KERNEL __launch_bounds__(64) bounded_kernel(float* output) { output[0] = 1; }

KERNEL integer_overflow_kernel(int* output) { output[0] += 0x7FFFFFFF; }
