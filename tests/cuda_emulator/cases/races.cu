// Kernels for the detection of races. Those whose name starts with "safe" have none.
#include <common.cuh>

KERNEL safe_transpose_kernel(float* output) {
  __shared__ float numbers[64];
  numbers[threadIdx.x] = threadIdx.x;
  __syncthreads();
  float x = numbers[63 - threadIdx.x];
  __syncthreads();
  numbers[threadIdx.x] = x;
  output[threadIdx.x] = numbers[threadIdx.x];
}

// The buffer is written again while others may still read it.
KERNEL early_overwrite_kernel(float* output) {
  __shared__ float numbers[64];
  for (int step = 0; step < 2; ++step) {
    numbers[threadIdx.x] = step;
    __syncthreads();
    output[threadIdx.x] = numbers[threadIdx.x ^ 32];
  }
}

KERNEL missing_syncwarp_kernel(float* output) {
  __shared__ float numbers[32];
  numbers[threadIdx.x] = threadIdx.x;
  // A shuffle lets lanes meet, but orders no memory.
  float x = __shfl_xor_sync(kAllLanes, 1.0f, 1);
  output[threadIdx.x] = x * numbers[threadIdx.x ^ 1];
}

KERNEL wrong_barrier_kernel(float* output) {
  __shared__ float number;
  if (threadIdx.x == 0) number = 1;
  // Each pair of warps has a barrier of its own, and only the first pair sees the number.
  named_barrier_sync(1 + threadIdx.x / 64, 64);
  output[threadIdx.x] = number;
}

// Bytes next to each other belong to different threads.
KERNEL safe_bytes_kernel(int8* output) {
  __shared__ int8 numbers[64];
  for (int step = 0; step < 3; ++step) numbers[threadIdx.x] = int8(step + threadIdx.x);
  output[threadIdx.x] = numbers[threadIdx.x];
}

// Both blocks write the element between them.
KERNEL overlapping_blocks_kernel(float* output) { output[blockIdx.x * 31 + threadIdx.x] = 1; }

// The last block to come adds what the others left.
DEVICE void sum_of_blocks(float* partial, unsigned* ticket, float* output, bool by_last) {
  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = 1;
    __threadfence();
    is_last = by_last ? atomicAdd(ticket, 1u) == gridDim.x - 1 : blockIdx.x == gridDim.x - 1;
  }
  __syncthreads();
  if (is_last && threadIdx.x == 0) {
    float sum = 0;
    for (int i = 0; i < int(gridDim.x); ++i) sum += partial[i];
    output[0] = sum;
  }
}

KERNEL safe_ticket_kernel(float* partial, unsigned* ticket, float* output) {
  sum_of_blocks(partial, ticket, output, true);
}

KERNEL missing_ticket_kernel(float* partial, unsigned* ticket, float* output) {
  sum_of_blocks(partial, ticket, output, false);
}

// Two stages of cp.async; `barrier_after_use` 0 lets the next copy overwrite what others still read.
KERNEL pipeline_kernel(const float* input, float* output, int64 steps, int64 barrier_after_use) {
  __shared__ __align__(16) float stages[2][256];
  int thread = threadIdx.x;
  auto load = [&](int64 step) {
    if (step < steps) cp_async_16(&stages[step % 2][4 * thread], input + step * 256 + 4 * thread);
    cp_async_commit();
  };
  float sum = 0;
  load(0);
  for (int64 step = 0; step < steps; ++step) {
    load(step + 1);
    cp_async_wait<1>();
    __syncthreads();
    for (int i = 0; i < 4; ++i) sum += stages[step % 2][(4 * thread + i + 128) % 256];
    if (barrier_after_use) __syncthreads();
  }
  output[thread] = sum;
}
