// What CUDA C++ has without any header, as far as kernels here use it.
#pragma once

#include <math.h>
#include <string.h>

#include "grid.h"

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
// Zero-initialised statics are all that stands in the kernel's .bss, which the build renames to emulator_shared.
#define __shared__ static
#define __constant__ static const
// Found by the build in the preprocessed source, and checked at launch.
#define __launch_bounds__(...) [[emulator::launch_bounds(__VA_ARGS__)]]

constexpr int warpSize = 32;

// ---- bits ----------------------------------------------------------------------------------------------------------

namespace emulator {
template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}
}  // namespace emulator

inline unsigned __float_as_uint(float x) { return emulator::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emulator::bit_cast<float>(x); }
inline int __float_as_int(float x) { return emulator::bit_cast<int>(x); }
inline float __int_as_float(int x) { return emulator::bit_cast<float>(x); }

inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

// The sum of four products of bytes, and c.
inline int __dp4a(int a, int b, int c) {
  unsigned sum = unsigned(c);
  for (int i = 0; i < 4; ++i) sum += unsigned(int((signed char)(a >> 8 * i)) * int((signed char)(b >> 8 * i)));
  return int(sum);
}

// Byte i of the result is byte (selector >> 4 * i) % 8 of the eight bytes {a, b}.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  uint64_t bytes = uint64_t(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i;
  return result;
}

// ---- numbers -------------------------------------------------------------------------------------------------------

template <class T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
  return a < b ? b : a;
}

inline float rsqrtf(float x) { return float(1 / sqrt(double(x))); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __int2float_rn(int x) { return float(x); }
inline float __saturatef(float x) { return x > 0 ? fminf(x, 1) : 0; }

// Denominators above 2^126 give 0, as the instruction does.
inline float __fdividef(float a, float b) {
  bool huge = fabsf(b) > 0x1p126f && fabsf(b) <= 0x1.fffffep127f;
  return huge ? a * 0.0f : a / b;
}

inline int __float2int_rn(float x) {
  if (x != x) return 0;
  return x >= 0x1p31f ? 0x7FFFFFFF : x < -0x1p31f ? int(0x80000000) : int(rintf(x));
}

// ---- barriers and fences -------------------------------------------------------------------------------------------

inline void __syncthreads(emulator::Site site = emulator::here()) {
  emulator::barrier("__syncthreads", 0, 0, true, site);
}

// A barrier that counts, or combines, the predicates of all threads.
inline int __syncthreads_count(int predicate, emulator::Site site = emulator::here()) {
  return emulator::counting_barrier("__syncthreads_count", predicate != 0, site);
}

inline int __syncthreads_or(int predicate, emulator::Site site = emulator::here()) {
  return emulator::counting_barrier("__syncthreads_or", predicate != 0, site) != 0;
}

inline int __syncthreads_and(int predicate, emulator::Site site = emulator::here()) {
  return emulator::counting_barrier("__syncthreads_and", predicate == 0, site) == 0;
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFF, emulator::Site site = emulator::here()) {
  char nothing = 0;
  emulator::warp_collective("__syncwarp", mask, nothing, false, site, [](auto) { emulator::order_lanes(); });
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) {}

[[noreturn]] inline void __trap(emulator::Site site = emulator::here()) { emulator::fail(site, "__trap"); }

inline size_t __cvta_generic_to_shared(const void* pointer) { return emulator::to_window(pointer); }

// ---- shuffles ------------------------------------------------------------------------------------------------------

namespace emulator {

// Every lane gets the value of lane `source`, which it names itself.
template <class T>
inline T shuffle(const char* what, unsigned mask, T value, int source, Site site) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  struct Operand {
    T value, result;
    int source;
  } operand = {value, value, source};
  warp_collective(what, mask, operand, false, site, [=](Lanes<Operand> lanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!lanes[lane]) continue;
      const Operand* from = lanes[lanes[lane]->source];
      if (!from) fail(site, "%s: lane %d reads lane %d, which does not take part", what, lane, lanes[lane]->source);
      lanes[lane]->result = from->value;
    }
  });
  return operand.result;
}

inline int lane_id() { return self->rank % kLanes; }

// The first lane of this lane's group of `width`.
inline int group_start(int width) { return lane_id() / width * width; }

}  // namespace emulator

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, emulator::Site site = emulator::here()) {
  return emulator::shuffle("__shfl_sync", mask, value, emulator::group_start(width) + (source & (width - 1)), site);
}

template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                        emulator::Site site = emulator::here()) {
  int lane = emulator::lane_id(), source = lane - int(delta);
  return emulator::shuffle("__shfl_up_sync", mask, value, source < emulator::group_start(width) ? lane : source, site);
}

template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                          emulator::Site site = emulator::here()) {
  int lane = emulator::lane_id(), source = lane + int(delta);
  bool outside = source >= emulator::group_start(width) + width;
  return emulator::shuffle("__shfl_down_sync", mask, value, outside ? lane : source, site);
}

template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, emulator::Site site = emulator::here()) {
  int lane = emulator::lane_id(), source = lane ^ lanes;
  bool outside = source >= emulator::group_start(width) + width;
  return emulator::shuffle("__shfl_xor_sync", mask, value, outside ? lane : source, site);
}

// ---- votes and reductions ------------------------------------------------------------------------------------------

namespace emulator {

// `combine` over the values of all lanes, in all of them.
template <class T, class Combine>
inline T warp_fold(const char* what, unsigned mask, T value, Site site, Combine combine) {
  warp_collective(what, mask, value, false, site, [&](Lanes<T> lanes) {
    T result{};
    bool first = true;
    for (int lane = 0; lane < kLanes; ++lane) {
      if (!lanes[lane]) continue;
      result = first ? *lanes[lane] : combine(result, *lanes[lane]);
      first = false;
    }
    for (int lane = 0; lane < kLanes; ++lane)
      if (lanes[lane]) *lanes[lane] = result;
  });
  return value;
}

}  // namespace emulator

inline unsigned __ballot_sync(unsigned mask, int predicate, emulator::Site site = emulator::here()) {
  unsigned bit = predicate ? 1u << emulator::lane_id() : 0;
  return emulator::warp_fold("__ballot_sync", mask, bit, site, [](unsigned a, unsigned b) { return a | b; });
}

inline int __any_sync(unsigned mask, int predicate, emulator::Site site = emulator::here()) {
  return emulator::warp_fold("__any_sync", mask, int(predicate != 0), site, [](int a, int b) { return a | b; });
}

inline int __all_sync(unsigned mask, int predicate, emulator::Site site = emulator::here()) {
  return emulator::warp_fold("__all_sync", mask, int(predicate != 0), site, [](int a, int b) { return a & b; });
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned value, emulator::Site site = emulator::here()) {
  return emulator::warp_fold("__reduce_add_sync", mask, value, site, [](unsigned a, unsigned b) { return a + b; });
}

inline int __reduce_add_sync(unsigned mask, int value, emulator::Site site = emulator::here()) {
  return int(__reduce_add_sync(mask, unsigned(value), site));
}

template <class T>
inline T __reduce_max_sync(unsigned mask, T value, emulator::Site site = emulator::here()) {
  return emulator::warp_fold("__reduce_max_sync", mask, value, site, [](T a, T b) { return a < b ? b : a; });
}

template <class T>
inline T __reduce_min_sync(unsigned mask, T value, emulator::Site site = emulator::here()) {
  return emulator::warp_fold("__reduce_min_sync", mask, value, site, [](T a, T b) { return b < a ? b : a; });
}

// ---- atomics -------------------------------------------------------------------------------------------------------

// One thread runs at a time and is never interrupted here. Each returns the old value.
namespace emulator {

// Not instrumented: to the detection of races this is one access, and atomic.
template <class T, class Change>
__attribute__((no_sanitize("thread"), noinline)) T atomic(T* address, Site site, Change change) {
  note_atomic(address, sizeof(T), site);
  T old = *address;
  *address = change(old);
  return old;
}

// Integers wrap around.
template <class T>
inline T wrapping_add(T a, T b) {
  return T((unsigned long long)a + (unsigned long long)b);
}

}  // namespace emulator

#define EMULATOR_ATOMIC(T, name, new_value)                                    \
  inline T name(T* address, T value, emulator::Site site = emulator::here()) { \
    return emulator::atomic(address, site, [=](T old) { return new_value; });  \
  }
#define EMULATOR_ATOMICS(T)                                                                       \
  EMULATOR_ATOMIC(T, atomicAdd, emulator::wrapping_add(old, value))                               \
  EMULATOR_ATOMIC(T, atomicMax, max(old, value))                                                  \
  EMULATOR_ATOMIC(T, atomicMin, min(old, value))                                                  \
  EMULATOR_ATOMIC(T, atomicOr, old | value)                                                       \
  EMULATOR_ATOMIC(T, atomicAnd, old& value)                                                       \
  EMULATOR_ATOMIC(T, atomicExch, value)                                                           \
  inline T atomicCAS(T* address, T expected, T value, emulator::Site site = emulator::here()) {   \
    return emulator::atomic(address, site, [=](T old) { return old == expected ? value : old; }); \
  }

EMULATOR_ATOMICS(int)
EMULATOR_ATOMICS(unsigned)
EMULATOR_ATOMICS(unsigned long long)
EMULATOR_ATOMIC(float, atomicAdd, old + value)
#undef EMULATOR_ATOMICS
#undef EMULATOR_ATOMIC
