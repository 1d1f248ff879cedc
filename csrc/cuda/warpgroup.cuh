// The instructions of Hopper (sm_90a): transaction barriers, tensor copies (TMA) and matrix products of four warps.
//
// Kernels include this as <warpgroup.cuh>; tests/cuda_emulator has a header of the same name for the CPU.
#pragma once

#include <ptx.cuh>

// ---- transaction barriers ------------------------------------------------------------------------------------------

// A barrier's phase ends when `count` arrivals and all announced bytes have come. Phases have parities 0, 1, 0, ...

typedef uint64 mbarrier;

DEVICE void mbarrier_init(mbarrier* barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

// Makes initialised barriers visible to the copy engine; a __syncthreads must follow for the other threads.
DEVICE void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DEVICE void mbarrier_arrive(mbarrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and announces that `bytes` more will be copied before the phase ends.
DEVICE void mbarrier_arrive_expect(mbarrier* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Waits until the phase of this parity has ended. A fresh barrier counts the phase before its first, of parity 1, as
// ended.
DEVICE void mbarrier_wait(mbarrier* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Orders what this thread wrote to shared memory before what the copy engine or a warpgroup product reads next.
DEVICE void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- tensor copies -------------------------------------------------------------------------------------------------

// Describes a tensor in global memory, its box and its swizzle; made by the host (bigkern/cuda), passed as a
// `const __grid_constant__ TensorMap`.
struct alignas(64) TensorMap {
  uint8 opaque[128];
};

DEVICE void tensor_map_prefetch(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// One thread starts copying the box at (x, y) (x along the contiguous dimension) to shared memory; the barrier counts
// its bytes. What lies outside the tensor is filled with zeros, and counted.
DEVICE void tensor_load_2d(void* shared, const TensorMap* map, mbarrier* barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::
          "r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y)
      : "memory");
}

DEVICE void tensor_load_4d(void* shared, const TensorMap* map, mbarrier* barrier, int x, int y, int z, int w) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}

// One thread starts copying a box from shared memory; what lies outside the tensor is left out.
DEVICE void tensor_store_2d(const TensorMap* map, const void* shared, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
               "r"(shared_address(shared)), "r"(x), "r"(y)
               : "memory");
}

DEVICE void tensor_store_4d(const TensorMap* map, const void* shared, int x, int y, int z, int w) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
               "r"(shared_address(shared)), "r"(x), "r"(y), "r"(z), "r"(w)
               : "memory");
}

DEVICE void tensor_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until the shared memory of all but the newest `pending` groups of stores may be written again.
template <int pending>
DEVICE void tensor_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(pending) : "memory");
}

// ---- products of a warpgroup ---------------------------------------------------------------------------------------

// d [64, N] (+)= a [64, k] @ b [k, N] by the 128 threads of a warpgroup, asynchronously: registers of d and a must not
// be touched before wgmma_wait. Warp w of the group holds rows 16w to 16w + 15; with g = lane / 4 and t = lane % 4,
// d[4j] and d[4j + 1] are row g, columns 8j + 2t and the next, d[4j + 2] and d[4j + 3] are row g + 8. a in registers is
// laid out as for mma_m16n8k16.

// Before the first product, and after registers of d or a have been written.
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int pending>
DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// Keeps the compiler from moving uses of an accumulator across a wait.
template <int N>
DEVICE void wgmma_keep(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

template <int N>
DEVICE void wgmma_keep(int (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

enum Swizzle { kNoSwizzle = 0, kSwizzle128 = 1, kSwizzle64 = 2, kSwizzle32 = 3 };

// Where an operand lies in shared memory, as rows of 128 bytes with 128-byte swizzle (byte address bits 4-6 are
// exclusive-or'ed with bits 7-9), 1024-byte aligned groups of 8 rows.
// K-major (rows are the 64 or N index, columns k): stride_bytes from one group of 8 rows to the next; leading_bytes
// unused. The next k step lies 32 bytes on. MN-major (rows are k, 64 16-bit columns of M or N each): stride_bytes from
// one group of 8 k to the next, leading_bytes from one block of 64 columns to the next.
DEVICE uint64 wgmma_descriptor(const void* shared, int leading_bytes, int stride_bytes, Swizzle swizzle = kSwizzle128) {
  return uint64((shared_address(shared) & 0x3FFFF) >> 4) | uint64(leading_bytes >> 4) << 16 |
         uint64(stride_bytes >> 4) << 32 | uint64(swizzle) << 62;
}

#define TEN_REGISTERS_0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "
#define TEN_REGISTERS(t) \
  "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9, "
#define SIXTY_REGISTERS \
  TEN_REGISTERS_0 TEN_REGISTERS(1) TEN_REGISTERS(2) TEN_REGISTERS(3) TEN_REGISTERS(4) TEN_REGISTERS(5)
#define REGISTERS_32 TEN_REGISTERS_0 TEN_REGISTERS(1) TEN_REGISTERS(2) "%30, %31"
#define REGISTERS_64 SIXTY_REGISTERS "%60, %61, %62, %63"
#define REGISTERS_96 SIXTY_REGISTERS TEN_REGISTERS(6) TEN_REGISTERS(7) TEN_REGISTERS(8) "%90, %91, %92, %93, %94, %95"
#define REGISTERS_128                                                                                   \
  SIXTY_REGISTERS TEN_REGISTERS(6) TEN_REGISTERS(7) TEN_REGISTERS(8) TEN_REGISTERS(9) TEN_REGISTERS(10) \
      TEN_REGISTERS(11) "%120, %121, %122, %123, %124, %125, %126, %127"
#define IN_OUT_8(c, d, i)                                                                                            \
  "+" c(d[i]), "+" c(d[i + 1]), "+" c(d[i + 2]), "+" c(d[i + 3]), "+" c(d[i + 4]), "+" c(d[i + 5]), "+" c(d[i + 6]), \
      "+" c(d[i + 7])
#define IN_OUT_32(c, d, i) IN_OUT_8(c, d, i), IN_OUT_8(c, d, i + 8), IN_OUT_8(c, d, i + 16), IN_OUT_8(c, d, i + 24)
#define IN_OUT_64(c, d, i) IN_OUT_32(c, d, i), IN_OUT_32(c, d, i + 32)
#define IN_OUT_96(c, d, i) IN_OUT_64(c, d, i), IN_OUT_32(c, d, i + 64)
#define IN_OUT_128(c, d, i) IN_OUT_64(c, d, i), IN_OUT_64(c, d, i + 64)

// wgmma<T, a_is_mn_major, b_is_mn_major>(d, a, b, accumulate): both operands from shared memory.
// wgmma<T, b_is_mn_major>(d, a, b, accumulate): a from registers.
// `accumulate` 0 overwrites d, 1 adds to it. N is twice the length of d: 64, 128, 192 or 256. MN-major operands lie
// with their m or n contiguous.
#define WGMMA_SHARED(N, COUNT, TYPE, A, B, C, D, E)                                                                 \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #C ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE \
               "." TYPE " {" REGISTERS_##COUNT "}, %" #A ", %" #B ", p, 1, 1, %" #D ", %" #E ";\n}"                 \
               : IN_OUT_##COUNT("f", d, 0)                                                                          \
               : "l"(a), "l"(b), "r"(accumulate), "n"(int(a_is_mn_major)), "n"(int(b_is_mn_major)))
#define WGMMA_REGISTERS(N, COUNT, TYPE, A, B, C, D, E, F, G)                                                        \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #F ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE \
               "." TYPE " {" REGISTERS_##COUNT "}, {%" #A ", %" #B ", %" #C ", %" #D "}, %" #E ", p, 1, 1, %" #G    \
                                               ";\n}"                                                               \
               : IN_OUT_##COUNT("f", d, 0)                                                                          \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(int(b_is_mn_major)))
#define WGMMA_INT8(N, COUNT, A, B, C)                                                               \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #C ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N \
               "k32.s32.s8.s8 {" REGISTERS_##COUNT "}, %" #A ", %" #B ", p;\n}"                     \
               : IN_OUT_##COUNT("r", d, 0)                                                          \
               : "l"(a), "l"(b), "r"(accumulate))

template <class T>
struct WgmmaType;
template <>
struct WgmmaType<float16> {
  static constexpr bool is_float16 = true;
};
template <>
struct WgmmaType<bfloat16> {
  static constexpr bool is_float16 = false;
};

// The numbers are those of the operands that follow the COUNT registers of d.
#define DEFINE_WGMMA(N, COUNT, A, B, C, D, E, F, G)                                     \
  template <class T, bool a_is_mn_major, bool b_is_mn_major>                            \
  DEVICE void wgmma(float (&d)[COUNT], uint64 a, uint64 b, int accumulate) {            \
    if constexpr (WgmmaType<T>::is_float16) {                                           \
      WGMMA_SHARED(N, COUNT, "f16", A, B, C, D, E);                                     \
    } else {                                                                            \
      WGMMA_SHARED(N, COUNT, "bf16", A, B, C, D, E);                                    \
    }                                                                                   \
  }                                                                                     \
  template <class T, bool b_is_mn_major>                                                \
  DEVICE void wgmma(float (&d)[COUNT], const uint32(&a)[4], uint64 b, int accumulate) { \
    if constexpr (WgmmaType<T>::is_float16) {                                           \
      WGMMA_REGISTERS(N, COUNT, "f16", A, B, C, D, E, F, G);                            \
    } else {                                                                            \
      WGMMA_REGISTERS(N, COUNT, "bf16", A, B, C, D, E, F, G);                           \
    }                                                                                   \
  }                                                                                     \
  /* int8, k = 32, both operands K-major from shared memory. */                         \
  DEVICE void wgmma_int8(int (&d)[COUNT], uint64 a, uint64 b, int accumulate) { WGMMA_INT8(N, COUNT, A, B, C); }

DEFINE_WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38)
DEFINE_WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70)
DEFINE_WGMMA(192, 96, 96, 97, 98, 99, 100, 101, 102)
DEFINE_WGMMA(256, 128, 128, 129, 130, 131, 132, 133, 134)

#undef DEFINE_WGMMA
#undef WGMMA_SHARED
#undef WGMMA_REGISTERS
#undef WGMMA_INT8

// ---- registers -----------------------------------------------------------------------------------------------------

// Called by all warps of a warpgroup: its threads get, or are left with, `count` registers each (a multiple of 8, 24 to
// 240).
template <int count>
DEVICE void warpgroup_take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count));
}

template <int count>
DEVICE void warpgroup_leave_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count));
}
