// Operations of a warp and of a block, with results that tests know.
#include <common.cuh>

// results [num_results, 32]: what each lane gets from each shuffle of its own number, 100 + lane.
KERNEL shuffles_kernel(int* results) {
  int lane = threadIdx.x, value = 100 + lane;
  int* result = results + lane;
  auto put = [&](int x) {
    *result = x;
    result += kWarp;
  };
  put(__shfl_sync(kAllLanes, value, 5));
  put(__shfl_sync(kAllLanes, value, lane + 1, 8));
  put(__shfl_up_sync(kAllLanes, value, 3));
  put(__shfl_down_sync(kAllLanes, value, 3, 16));
  put(__shfl_xor_sync(kAllLanes, value, 9));
  put(int(__ballot_sync(kAllLanes, lane % 3 == 0)));
  put(__any_sync(kAllLanes, lane == 7));
  put(__all_sync(kAllLanes, lane != 7));
  put(__reduce_add_sync(kAllLanes, value));
  // Half a warp at a time, at different places.
  if (lane < 16) {
    put(__reduce_max_sync(0x0000FFFFu, value));
  } else {
    put(__reduce_max_sync(0xFFFF0000u, -value));
  }
}

// Each row's sum by a block of 256 threads; static shared memory inside a template.
template <class T>
DEVICE T sum_of_block(T x) {
  __shared__ T scratch[8];
  return block_reduce<256>(x, Sum(), scratch);
}

KERNEL __launch_bounds__(256) row_sums_kernel(const float* input, float* sums, int* counts, int64 columns) {
  float sum = 0;
  int count = 0;
  for (int64 i = threadIdx.x; i < columns; i += blockDim.x) {
    sum += input[blockIdx.x * columns + i];
    ++count;
  }
  sum = sum_of_block(sum);
  count = sum_of_block(count);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = sum;
    atomicAdd(counts, count);
  }
}

// output [16, 64] of int8 numbers: input [rows, columns] of at most that size, by cp.async, zeros beyond it.
KERNEL copy_padded_kernel(const int8* input, int8* output, int64 rows, int64 columns) {
  __shared__ __align__(16) int8 tile[16][64];
  int row = threadIdx.x / 4, column = threadIdx.x % 4 * 16;
  int64 bytes = row < rows ? max_of<int64>(0, min_of<int64>(16, columns - column)) : 0;
  cp_async_16(&tile[row][column], bytes ? input + row * columns + column : input, int(bytes));
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  for (int i = threadIdx.x; i < 16 * 64; i += blockDim.x) output[i] = tile[i / 64][i % 64];
}

// Named barriers hand a number from the first warp to the second, and back.
KERNEL named_barriers_kernel(int* output) {
  __shared__ int box;
  if (threadIdx.x < 32) {
    if (threadIdx.x == 0) box = 41;
    named_barrier_arrive(1, 64);
    named_barrier_sync(2, 64);
    output[threadIdx.x] = box;
  } else {
    named_barrier_sync(1, 64);
    int seen = box;
    __syncwarp();
    if (threadIdx.x == 32) box = seen + 1;
    named_barrier_arrive(2, 64);
  }
}

// Some threads leave before the barrier.
KERNEL early_exit_kernel(int* output) {
  __shared__ int sum;
  if (threadIdx.x >= 70) return;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  atomicAdd(&sum, 1);
  __syncthreads();
  output[threadIdx.x] = sum;
}
