// The instructions that C++ has no words for, one named function each: the only inline PTX of the project.
//
// Kernels include this as <ptx.cuh>. tests/cuda_emulator has a header of the same name and contents for the CPU, which
// stands first on the include path there. No header of the CUDA toolkit is needed.
#pragma once

typedef signed char int8;
typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef long long int64;
typedef unsigned long long uint64;

#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__ void
// The launch's dynamic shared memory, aligned as TMA's widest swizzle asks.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) uint8 name[]

// ---- numbers -------------------------------------------------------------------------------------------------------

struct float16 {
  uint16 bits;
};

struct bfloat16 {
  uint16 bits;
};

DEVICE float to_float(float x) { return x; }

DEVICE float to_float(float16 x) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
}

DEVICE float to_float(bfloat16 x) { return __uint_as_float(uint32(x.bits) << 16); }

// float -> T, rounded to nearest even.
template <class T>
DEVICE T from_float(float x);

template <>
DEVICE float from_float<float>(float x) {
  return x;
}

template <>
DEVICE float16 from_float<float16>(float x) {
  float16 result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
}

template <>
DEVICE bfloat16 from_float<bfloat16>(float x) {
  bfloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
  return result;
}

// Two numbers of T in one register, `low` in the lower half: what matrix instructions take.
template <class T>
DEVICE uint32 pack(float low, float high);

template <>
DEVICE uint32 pack<float16>(float low, float high) {
  uint32 result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

template <>
DEVICE uint32 pack<bfloat16>(float low, float high) {
  uint32 result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

// The bits of x rounded to tf32 (10 bits of mantissa), to nearest, ties away from zero.
DEVICE uint32 to_tf32(float x) {
  uint32 result;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(x));
  return result;
}

// Round to nearest even, clamped to [-128, 127]; NaN gives 0.
DEVICE int round_to_int8(float x) {
  int result;
  asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(result) : "f"(x));
  return int(int8(result));
}

// 2^x and log2(x) in one instruction: relative error 2^-22, subnormal results 0.
DEVICE float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

DEVICE float log2_approx(float x) {
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// ---- global memory -------------------------------------------------------------------------------------------------

// 16 bytes at an address of 16, as one access.
DEVICE void load_16(uint32 (&words)[4], const void* global) {
  asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "l"(global)
               : "memory");
}

DEVICE void store_16(void* global, const uint32 (&words)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(words[0]), "r"(words[1]), "r"(words[2]),
               "r"(words[3])
               : "memory");
}

// ---- shared memory -------------------------------------------------------------------------------------------------

DEVICE uint32 shared_address(const void* pointer) { return uint32(__cvta_generic_to_shared(pointer)); }

// Starts copying 16 bytes from global to shared memory, both 16-byte aligned; only the first `source_bytes` (0 to 16)
// are read, the rest is filled with zeros.
DEVICE void cp_async_16(void* shared, const void* global, int source_bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(source_bytes)
               : "memory");
}

// Closes this thread's group of copies.
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the newest `pending` groups of this thread are under way. Other threads see the data after a
// barrier.
template <int pending>
DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Loads four 8x8 matrices of 16-bit numbers: lane l gives the address of row l % 8 of matrix l / 8 (16 bytes), and gets
// from each matrix the two numbers at row lane / 4, columns 2 * (lane % 4) and the next.
DEVICE void ldmatrix_x4(uint32 (&matrices)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same, each matrix transposed.
DEVICE void ldmatrix_x4_trans(uint32 (&matrices)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(shared_address(row))
               : "memory");
}

// ---- matrix instructions of one warp -------------------------------------------------------------------------------

// d [16, 8] += a [16, k] @ b [k, 8].
// With g = lane / 4 and t = lane % 4, a lane holds of d the rows g (d[0], d[1]) and g + 8 (d[2], d[3]), columns 2t and
// 2t + 1.

// k = 16. a[0], a[2]: row g, columns 2t, 2t + 1 and those + 8; a[1], a[3]: row g + 8. b[0], b[1]: column g, rows 2t,
// 2t + 1 and those + 8.
template <class T>
DEVICE void mma_m16n8k16(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]);

template <>
DEVICE void mma_m16n8k16<float16>(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
DEVICE void mma_m16n8k16<bfloat16>(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// k = 8, tf32 in 32-bit registers. a[0], a[2]: row g, columns t and t + 4; a[1], a[3]: row g + 8. b[0], b[1]: column g,
// rows t and t + 4.
DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// k = 32, int8. a[0], a[2]: row g, columns 4t to 4t + 3 and those + 16; a[1], a[3]: row g + 8. b[0], b[1]: column g,
// rows 4t to 4t + 3 and those + 16.
DEVICE void mma_m16n8k32_int8(int (&d)[4], const uint32 (&a)[4], const uint32 (&b)[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- barriers ------------------------------------------------------------------------------------------------------

// Barrier `id` (1 to 15; 0 is __syncthreads) of `threads` threads, a multiple of 32: wait for all of them, or only
// be counted.
DEVICE void named_barrier_sync(int id, int threads) {
  asm volatile("barrier.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

DEVICE void named_barrier_arrive(int id, int threads) {
  asm volatile("barrier.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
