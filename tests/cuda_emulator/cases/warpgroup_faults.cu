// Each kernel does one thing wrong with Hopper's instructions, or, by its argument, does not.
#include <common.cuh>
#include <warpgroup.cuh>

constexpr int kTileBytes = 64 * 128;

enum Fault {
  kNone = 0,
  kMissingInitFence = 1,
  kTooFewBytesExpected = 2,
  kTooManyBytesExpected = 3,
  kMissingWait = 4,
  kMisalignedBox = 5,
  kTooManyArrivals = 6,
  kMissingInit = 7,
};

// The tensor's first tile, by one copy.
KERNEL load_kernel(const __grid_constant__ TensorMap map, int8* output, int64 fault) {
  DYNAMIC_SHARED(memory);
  __shared__ mbarrier arrived;
  if (threadIdx.x == 0) {
    if (fault != kMissingInit) mbarrier_init(&arrived, 1);
    if (fault != kMissingInitFence) mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int bytes = fault == kTooFewBytesExpected    ? kTileBytes / 2
                : fault == kTooManyBytesExpected ? 2 * kTileBytes
                                                 : kTileBytes;
    mbarrier_arrive_expect(&arrived, bytes);
    tensor_load_2d(memory + (fault == kMisalignedBox ? 128 : 0), &map, &arrived, 0, 0);
    if (fault == kTooManyArrivals) {
      mbarrier_arrive(&arrived);
      mbarrier_arrive(&arrived);
    }
  }
  if (fault != kMissingWait) mbarrier_wait(&arrived, 0);
  for (int i = threadIdx.x; i < kTileBytes; i += blockDim.x) output[i] = memory[i];
}

// A producer thread and a consumer warpgroup share two stages; `stages_released` 0: the consumers never say that a
// stage may be overwritten, and the producer does not wait.
KERNEL ring_kernel(const __grid_constant__ TensorMap map, float* output, int64 steps, int64 stages_released) {
  DYNAMIC_SHARED(memory);
  __shared__ mbarrier full[2], empty[2];
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(&full[i], 1);
      mbarrier_init(&empty[i], 128);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x >= 128) {
    if (threadIdx.x > 128) return;
    for (int step = 0; step < steps; ++step) {
      int stage = step % 2, round = step / 2;
      if (stages_released) mbarrier_wait(&empty[stage], (round + 1) % 2);
      mbarrier_arrive_expect(&full[stage], kTileBytes);
      tensor_load_2d(memory + stage * kTileBytes, &map, &full[stage], 0, step * 64);
    }
    return;
  }
  float sum = 0;
  for (int step = 0; step < steps; ++step) {
    int stage = step % 2, round = step / 2;
    mbarrier_wait(&full[stage], round % 2);
    float* tile = reinterpret_cast<float*>(memory + stage * kTileBytes);
    for (int i = threadIdx.x; i < kTileBytes / 4; i += 128) sum += tile[i];
    if (stages_released) mbarrier_arrive(&empty[stage]);
  }
  output[threadIdx.x] = sum;
}

enum ProductFault {
  kNoFault = 0,
  kMissingProxyFence = 1,
  kMissingProductFence = 2,
  kMissingProductWait = 3,
  kMisalignedOperand = 4,
  kEarlyOverwrite = 5,
  kOneWarpLess = 6,
  kMissingBarrier = 7,
};

// d [64, 64] = a @ a^T of a tile [64, 64] that ordinary stores put into shared memory.
KERNEL square_kernel(const uint16* input, float* d, int64 fault) {
  DYNAMIC_SHARED(memory);
  auto store_tile = [&](int factor) {
    for (int i = threadIdx.x; i < 64 * 8; i += blockDim.x) {
      int row = i / 8, piece = i % 8;
      Vector<uint16, 8> numbers = load_vector<8>(input + row * 64 + piece * 8);
      numbers.values[0] *= factor;
      store_vector(reinterpret_cast<uint16*>(memory + row * 128 + (piece ^ row % 8) * 16), numbers);
    }
  };
  store_tile(1);
  if (fault != kMissingProxyFence) async_proxy_fence();
  if (fault != kMissingBarrier) __syncthreads();
  float sum[32];
  if (fault == kOneWarpLess && threadIdx.x < 32) return;
  if (fault != kMissingProductFence) wgmma_fence();
  for (int step = 0; step < 4; ++step) {
    uint64 tile = wgmma_descriptor(memory + step * 32 + (fault == kMisalignedOperand ? 128 : 0), 0, 1024);
    wgmma<bfloat16, false, false>(sum, tile, tile, step > 0);
  }
  wgmma_commit();
  if (fault == kEarlyOverwrite) {
    __syncthreads();
    store_tile(0);
  }
  if (fault != kMissingProductWait) wgmma_wait<0>();
  int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int i = 0; i < 32; ++i) {
    int row = warp * 16 + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    d[row * 64 + column] = sum[i];
  }
  if (fault == kMissingProductWait) wgmma_wait<0>();
}

// A tile through shared memory by a tensor store; `wait` 0: the thread ends before the store has read it.
KERNEL store_kernel(const __grid_constant__ TensorMap map, int64 fence, int64 wait) {
  DYNAMIC_SHARED(memory);
  for (int i = threadIdx.x; i < kTileBytes; i += blockDim.x) memory[i] = uint8(i % 100);
  if (fence) async_proxy_fence();
  __syncthreads();
  if (threadIdx.x == 0) {
    tensor_store_2d(&map, memory, 0, 0);
    tensor_store_commit();
    if (wait) tensor_store_wait_read<0>();
  }
}
