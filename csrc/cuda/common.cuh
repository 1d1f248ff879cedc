// What several kernels share, in plain CUDA on top of <ptx.cuh>.
#pragma once

#include <ptx.cuh>

constexpr int kWarp = 32;
constexpr uint32 kAllLanes = 0xFFFFFFFF;
// NVRTC has no constant expression for these two.
#define kInfinity __uint_as_float(0x7F800000)
#define kNaN __uint_as_float(0x7FC00000)

template <class T>
DEVICE T min_of(T a, T b) {
  return b < a ? b : a;
}

template <class T>
DEVICE T max_of(T a, T b) {
  return a < b ? b : a;
}

template <class T>
DEVICE constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

// ---- memory --------------------------------------------------------------------------------------------------------

// `count` elements that are read and written as one access; 16 bytes at most.
template <class T, int count>
struct alignas(sizeof(T) * count) Vector {
  T values[count];
};

template <class T>
constexpr int kWidest = 16 / int(sizeof(T));

template <int count, class T>
DEVICE Vector<T, count> load_vector(const T* pointer) {
  return *reinterpret_cast<const Vector<T, count>*>(pointer);
}

template <int count, class T>
DEVICE void store_vector(T* pointer, const Vector<T, count>& vector) {
  *reinterpret_cast<Vector<T, count>*>(pointer) = vector;
}

// ---- reductions ----------------------------------------------------------------------------------------------------

struct Sum {
  template <class T>
  DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};

// NaN where either is NaN, as torch.amax.
struct Max {
  DEVICE float operator()(float a, float b) const { return (a > b || a != a) ? a : b; }
};

// The reduction over each `width` neighbouring lanes (a power of two), in all of them.
template <int width = kWarp, class T, class Operation>
DEVICE T warp_reduce(T value, Operation operation) {
#pragma unroll
  for (int distance = width / 2; distance > 0; distance /= 2)
    value = operation(value, __shfl_xor_sync(kAllLanes, value, distance));
  return value;
}

// The reduction over a block of `threads`, in all its threads, always in the same order. `scratch` holds one T per warp
// and may be used again after the next __syncthreads.
template <int threads, class T, class Operation>
DEVICE T block_reduce(T value, Operation operation, T* scratch) {
  value = warp_reduce(value, operation);
  if constexpr (threads == kWarp) return value;
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  T result = scratch[0];
#pragma unroll
  for (int warp = 1; warp < threads / kWarp; ++warp) result = operation(result, scratch[warp]);
  return result;
}
