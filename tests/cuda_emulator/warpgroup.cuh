// csrc/cuda/warpgroup.cuh for the CPU: the same names, on top of the emulator. Stands first on the include path.
#pragma once

#include <ptx.cuh>

#include "transactions.h"
#include "warpgroup.h"

// ---- transaction barriers ------------------------------------------------------------------------------------------

typedef uint64 mbarrier;

DEVICE uint64_t* emulated(mbarrier* barrier) { return reinterpret_cast<uint64_t*>(barrier); }

DEVICE void mbarrier_init(mbarrier* barrier, int count, emulator::Site site = emulator::here()) {
  emulator::barrier_init(emulated(barrier), count, site);
}

DEVICE void mbarrier_init_fence() { emulator::barrier_init_fence(); }

DEVICE void mbarrier_arrive(mbarrier* barrier, emulator::Site site = emulator::here()) {
  emulator::barrier_arrive(emulated(barrier), 0, site);
}

DEVICE void mbarrier_arrive_expect(mbarrier* barrier, int bytes, emulator::Site site = emulator::here()) {
  emulator::barrier_arrive(emulated(barrier), bytes, site);
}

DEVICE void mbarrier_wait(mbarrier* barrier, int parity, emulator::Site site = emulator::here()) {
  emulator::barrier_wait(emulated(barrier), parity, site);
}

DEVICE void async_proxy_fence() { emulator::proxy_fence(); }

// ---- tensor copies -------------------------------------------------------------------------------------------------

struct alignas(64) TensorMap {
  uint8 opaque[128];
};

DEVICE void tensor_map_prefetch(const TensorMap*) {}

DEVICE void tensor_load_2d(void* shared, const TensorMap* map, mbarrier* barrier, int x, int y,
                           emulator::Site site = emulator::here()) {
  int place[] = {x, y};
  emulator::start_tensor_load(shared, map, emulated(barrier), place, 2, site);
}

DEVICE void tensor_load_4d(void* shared, const TensorMap* map, mbarrier* barrier, int x, int y, int z, int w,
                           emulator::Site site = emulator::here()) {
  int place[] = {x, y, z, w};
  emulator::start_tensor_load(shared, map, emulated(barrier), place, 4, site);
}

DEVICE void tensor_store_2d(const TensorMap* map, const void* shared, int x, int y,
                            emulator::Site site = emulator::here()) {
  int place[] = {x, y};
  emulator::start_tensor_store(map, shared, place, 2, site);
}

DEVICE void tensor_store_4d(const TensorMap* map, const void* shared, int x, int y, int z, int w,
                            emulator::Site site = emulator::here()) {
  int place[] = {x, y, z, w};
  emulator::start_tensor_store(map, shared, place, 4, site);
}

DEVICE void tensor_store_commit() { emulator::commit_tensor_stores(); }

template <int pending>
DEVICE void tensor_store_wait_read() {
  emulator::wait_for_tensor_stores(pending);
}

// ---- products of a warpgroup ---------------------------------------------------------------------------------------

DEVICE void wgmma_fence(emulator::Site site = emulator::here()) { emulator::fence_products(site); }

DEVICE void wgmma_commit(emulator::Site site = emulator::here()) { emulator::commit_products(site); }

template <int pending>
DEVICE void wgmma_wait(emulator::Site site = emulator::here()) {
  emulator::wait_for_products(pending, site);
}

template <class Number, int N>
DEVICE void wgmma_keep(Number (&)[N]) {}

enum Swizzle { kNoSwizzle = 0, kSwizzle128 = 1, kSwizzle64 = 2, kSwizzle32 = 3 };

DEVICE uint64 wgmma_descriptor(const void* shared, int leading_bytes, int stride_bytes, Swizzle swizzle = kSwizzle128) {
  return uint64((shared_address(shared) & 0x3FFFF) >> 4) | uint64(leading_bytes >> 4) << 16 |
         uint64(stride_bytes >> 4) << 32 | uint64(swizzle) << 62;
}

namespace emulator {
// The lengths of d for which csrc/cuda/warpgroup.cuh defines products.
template <int registers>
inline constexpr bool is_width_of_product = registers == 32 || registers == 64 || registers == 96 || registers == 128;
}  // namespace emulator

template <class T, bool a_is_mn_major, bool b_is_mn_major, int registers>
DEVICE void wgmma(float (&d)[registers], uint64 a, uint64 b, int accumulate, emulator::Site site = emulator::here()) {
  static_assert(emulator::is_width_of_product<registers>);
  emulator::start_product(
      {MatrixType<T>::product, registers, nullptr, a, b, a_is_mn_major, b_is_mn_major, accumulate != 0}, d, site);
}

template <class T, bool b_is_mn_major, int registers>
DEVICE void wgmma(float (&d)[registers], const uint32 (&a)[4], uint64 b, int accumulate,
                  emulator::Site site = emulator::here()) {
  static_assert(emulator::is_width_of_product<registers>);
  emulator::start_product({MatrixType<T>::product, registers, a, 0, b, false, b_is_mn_major, accumulate != 0}, d, site);
}

template <int registers>
DEVICE void wgmma_int8(int (&d)[registers], uint64 a, uint64 b, int accumulate,
                       emulator::Site site = emulator::here()) {
  static_assert(emulator::is_width_of_product<registers>);
  emulator::start_product({emulator::Product::kInt8, registers, nullptr, a, b, false, false, accumulate != 0}, d, site);
}

// ---- registers -----------------------------------------------------------------------------------------------------

template <int count>
DEVICE void warpgroup_take_registers(emulator::Site site = emulator::here()) {
  static_assert(count % 8 == 0 && count >= 24 && count <= 240);
  emulator::change_registers(count, site);
}

template <int count>
DEVICE void warpgroup_leave_registers(emulator::Site site = emulator::here()) {
  static_assert(count % 8 == 0 && count >= 24 && count <= 240);
  emulator::change_registers(count, site);
}
