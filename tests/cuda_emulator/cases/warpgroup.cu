// Tensor copies, transaction barriers and products of a warpgroup.
#include <common.cuh>
#include <warpgroup.cuh>

#ifndef SCALAR
#define SCALAR bfloat16
#endif

// output: the box at (x, y) as it lies in shared memory, through a copy that one thread starts.
KERNEL load_box_2d_kernel(const __grid_constant__ TensorMap map, int8* output, int64 bytes, int64 x, int64 y) {
  DYNAMIC_SHARED(box);
  __shared__ mbarrier arrived;
  if (threadIdx.x == 0) {
    mbarrier_init(&arrived, 1);
    mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(&arrived, int(bytes));
    tensor_load_2d(box, &map, &arrived, int(x), int(y));
  }
  mbarrier_wait(&arrived, 0);
  for (int64 i = threadIdx.x; i < bytes; i += blockDim.x) output[i] = box[i];
}

// Copies a tensor by boxes, through two buffers: the thread that loads keeps one box ahead.
KERNEL copy_4d_kernel(const __grid_constant__ TensorMap source, const __grid_constant__ TensorMap target,
                      int64 box_bytes, int64 box_rows, int64 rows, int64 heads, int64 batch) {
  DYNAMIC_SHARED(buffers);
  __shared__ mbarrier full[2];
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) mbarrier_init(&full[i], 1);
    mbarrier_init_fence();
    int64 step = 0, blocks = ceil_div(rows, box_rows) * heads * batch;
    auto coordinates = [=](int64 block, int (&place)[3]) {
      place[0] = int(block % ceil_div(rows, box_rows) * box_rows);
      place[1] = int(block / ceil_div(rows, box_rows) % heads);
      place[2] = int(block / ceil_div(rows, box_rows) / heads);
    };
    auto load = [&](int64 block) {
      int place[3];
      coordinates(block, place);
      mbarrier_arrive_expect(&full[block % 2], int(box_bytes));
      tensor_load_4d(buffers + block % 2 * box_bytes, &source, &full[block % 2], 0, place[0], place[1], place[2]);
    };
    load(0);
    for (; step < blocks; ++step) {
      // The other buffer's store must have read it.
      tensor_store_wait_read<0>();
      if (step + 1 < blocks) load(step + 1);
      mbarrier_wait(&full[step % 2], int(step / 2 % 2));
      int place[3];
      coordinates(step, place);
      tensor_store_4d(&target, buffers + step % 2 * box_bytes, 0, place[0], place[1], place[2]);
      tensor_store_commit();
    }
    tensor_store_wait_read<0>();
  }
}

// d [64, N] = a [64, K] @ b [N, K]^T, K in steps of 64, all operands K-major, loaded with a swizzle of 128 bytes.
template <int registers>
DEVICE void multiply(const TensorMap& a, const TensorMap& b, float* d, int64 K, bool a_from_registers) {
  constexpr int N = 2 * registers;
  DYNAMIC_SHARED(memory);
  SCALAR* tile_a = reinterpret_cast<SCALAR*>(memory);
  SCALAR* tile_b = tile_a + 64 * 64;
  __shared__ mbarrier arrived;
  if (threadIdx.x == 0) {
    mbarrier_init(&arrived, 1);
    mbarrier_init_fence();
  }
  __syncthreads();
  float sum[registers];
  int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int64 k = 0; k < K; k += 64) {
    if (threadIdx.x == 0) {
      mbarrier_arrive_expect(&arrived, (64 + N) * 128);
      tensor_load_2d(tile_a, &a, &arrived, int(k), 0);
      tensor_load_2d(tile_b, &b, &arrived, int(k), 0);
    }
    mbarrier_wait(&arrived, int(k / 64 % 2));
    uint32 fragment[4][4];
    if (a_from_registers) {
      for (int step = 0; step < 4; ++step) {
        int row = warp * 16 + lane % 16, piece = step * 2 + lane / 16;
        ldmatrix_x4(fragment[step], memory + row * 128 + (piece ^ row % 8) * 16);
      }
    }
    wgmma_fence();
    for (int step = 0; step < 4; ++step) {
      uint64 descriptor_b = wgmma_descriptor(tile_b + step * 16, 0, 1024);
      int accumulate = k > 0 || step > 0;
      if (a_from_registers)
        wgmma<SCALAR, false>(sum, fragment[step], descriptor_b, accumulate);
      else
        wgmma<SCALAR, false, false>(sum, wgmma_descriptor(tile_a + step * 16, 0, 1024), descriptor_b, accumulate);
    }
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_keep(sum);
    __syncthreads();
  }
  for (int i = 0; i < registers; ++i) {
    int row = warp * 16 + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    d[row * N + column] = sum[i];
  }
}

KERNEL multiply_64_kernel(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* d, int64 K,
                          int64 a_from_registers) {
  multiply<32>(a, b, d, K, a_from_registers);
}

KERNEL multiply_256_kernel(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* d, int64 K,
                           int64 a_from_registers) {
  multiply<128>(a, b, d, K, a_from_registers);
}

// d [64, 128] = a [32, 64]^T @ b [32, 128]: both operands lie with m and n contiguous. The box of b is two blocks
// of 64.
KERNEL multiply_mn_major_kernel(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* d) {
  DYNAMIC_SHARED(memory);
  SCALAR* tile_a = reinterpret_cast<SCALAR*>(memory);
  SCALAR* tile_b = tile_a + 32 * 64;
  __shared__ mbarrier arrived;
  if (threadIdx.x == 0) {
    mbarrier_init(&arrived, 1);
    mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect(&arrived, 3 * 32 * 128);
    tensor_load_2d(tile_a, &a, &arrived, 0, 0);
    tensor_load_2d(tile_b, &b, &arrived, 0, 0);
    tensor_load_2d(tile_b + 32 * 64, &b, &arrived, 64, 0);
  }
  mbarrier_wait(&arrived, 0);
  float sum[64];
  wgmma_fence();
  for (int step = 0; step < 2; ++step) {
    uint64 descriptor_a = wgmma_descriptor(tile_a + step * 16 * 64, 0, 1024);
    uint64 descriptor_b = wgmma_descriptor(tile_b + step * 16 * 64, 32 * 128, 1024);
    wgmma<SCALAR, true, true>(sum, descriptor_a, descriptor_b, step > 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int i = 0; i < 64; ++i) {
    int row = warp * 16 + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    d[row * 128 + column] = sum[i];
  }
}

// d [64, 64] = a [64, 128] @ b [64, 128]^T of int8, by four steps of 32 in one swizzle of 128 bytes.
KERNEL multiply_int8_kernel(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, int* d) {
  DYNAMIC_SHARED(memory);
  __shared__ mbarrier arrived;
  if (threadIdx.x == 0) {
    mbarrier_init(&arrived, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(&arrived, 2 * 64 * 128);
    tensor_load_2d(memory, &a, &arrived, 0, 0);
    tensor_load_2d(memory + 64 * 128, &b, &arrived, 0, 0);
  }
  __syncthreads();
  mbarrier_wait(&arrived, 0);
  int sum[32];
  wgmma_fence();
  for (int step = 0; step < 4; ++step) {
    uint64 descriptor_a = wgmma_descriptor(memory + step * 32, 0, 1024);
    wgmma_int8(sum, descriptor_a, wgmma_descriptor(memory + 64 * 128 + step * 32, 0, 1024), step > 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int i = 0; i < 32; ++i) {
    int row = warp * 16 + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    d[row * 64 + column] = sum[i];
  }
}
