// csrc/cuda/ptx.cuh for the CPU: the same names, on top of the emulator. Stands first on the include path.
#pragma once

#include "builtins.h"
#include "copies.h"
#include "products.h"

typedef signed char int8;
typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef long long int64;
typedef unsigned long long uint64;

#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__ void
#define DYNAMIC_SHARED(name) uint8* const name = reinterpret_cast<uint8*>(emulator::dynamic_shared)

// ---- numbers -------------------------------------------------------------------------------------------------------

struct float16 {
  uint16 bits;
};

struct bfloat16 {
  uint16 bits;
};

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(float16 x) { return emulator::float_of_half(x.bits); }
DEVICE float to_float(bfloat16 x) { return __uint_as_float(uint32(x.bits) << 16); }

template <class T>
DEVICE T from_float(float x);

template <>
DEVICE float from_float<float>(float x) {
  return x;
}

template <>
DEVICE float16 from_float<float16>(float x) {
  return {emulator::half_of_float(x)};
}

template <>
DEVICE bfloat16 from_float<bfloat16>(float x) {
  return {emulator::bfloat_of_float(x)};
}

template <class T>
DEVICE uint32 pack(float low, float high) {
  return uint32(from_float<T>(low).bits) | uint32(from_float<T>(high).bits) << 16;
}

DEVICE uint32 to_tf32(float x) {
  uint32 bits = __float_as_uint(x);
  if (x != x) return 0x7FFFFFFF;
  bool infinite = (bits & 0x7FFFFFFF) == 0x7F800000;
  return infinite ? bits : (bits + 0x1000) & 0xFFFFE000;
}

DEVICE int round_to_int8(float x) {
  if (x != x) return 0;
  return int(rintf(fminf(fmaxf(x, -128), 127)));
}

DEVICE float exp2_approx(float x) { return emulator::flush_subnormal(exp2f(emulator::flush_subnormal(x))); }
DEVICE float log2_approx(float x) { return emulator::flush_subnormal(log2f(emulator::flush_subnormal(x))); }

// ---- global memory -------------------------------------------------------------------------------------------------

struct alignas(16) Access16 {
  uint32 words[4];
};

DEVICE void load_16(uint32 (&words)[4], const void* global) {
  const Access16 access = *static_cast<const Access16*>(global);
  for (int i = 0; i < 4; ++i) words[i] = access.words[i];
}

DEVICE void store_16(void* global, const uint32 (&words)[4]) {
  *static_cast<Access16*>(global) = {words[0], words[1], words[2], words[3]};
}

// ---- shared memory -------------------------------------------------------------------------------------------------

DEVICE uint32 shared_address(const void* pointer) { return uint32(__cvta_generic_to_shared(pointer)); }

DEVICE void cp_async_16(void* shared, const void* global, int source_bytes = 16,
                        emulator::Site site = emulator::here()) {
  emulator::start_copy(shared, global, source_bytes, site);
}

DEVICE void cp_async_commit() { emulator::commit_copies(); }

template <int pending>
DEVICE void cp_async_wait() {
  emulator::wait_for_copies(pending);
}

DEVICE void ldmatrix_x4(uint32 (&matrices)[4], const void* row, emulator::Site site = emulator::here()) {
  emulator::load_matrices(matrices, row, false, site);
}

DEVICE void ldmatrix_x4_trans(uint32 (&matrices)[4], const void* row, emulator::Site site = emulator::here()) {
  emulator::load_matrices(matrices, row, true, site);
}

// ---- matrix instructions of one warp -------------------------------------------------------------------------------

template <class T>
struct MatrixType;
template <>
struct MatrixType<float16> {
  static constexpr emulator::Product product = emulator::Product::kFloat16;
};
template <>
struct MatrixType<bfloat16> {
  static constexpr emulator::Product product = emulator::Product::kBfloat16;
};

template <class T>
DEVICE void mma_m16n8k16(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2],
                         emulator::Site site = emulator::here()) {
  emulator::warp_product(MatrixType<T>::product, d, a, b, site);
}

DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2],
                             emulator::Site site = emulator::here()) {
  emulator::warp_product(emulator::Product::kTf32, d, a, b, site);
}

DEVICE void mma_m16n8k32_int8(int (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2],
                              emulator::Site site = emulator::here()) {
  emulator::warp_product(emulator::Product::kInt8, d, a, b, site);
}

// ---- barriers ------------------------------------------------------------------------------------------------------

DEVICE void named_barrier_sync(int id, int threads, emulator::Site site = emulator::here()) {
  emulator::barrier("named_barrier_sync", id, threads, true, site);
}

DEVICE void named_barrier_arrive(int id, int threads, emulator::Site site = emulator::here()) {
  emulator::barrier("named_barrier_arrive", id, threads, false, site);
}
