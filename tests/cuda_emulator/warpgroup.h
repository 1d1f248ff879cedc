// wgmma: products of the four warps of a warpgroup, asynchronous, with operands in shared memory.
//
// Each warp computes its own 16 rows, so that the emulator makes no warp wait for another where the hardware does not.
#pragma once

#include "products.h"

namespace emulator {

constexpr int kMaxRegisters = 128;

struct WarpgroupProduct {
  Product product;
  // Half of N: a lane's registers of d.
  int registers;
  // Read when the product is issued; null: `a` describes shared memory.
  const uint32_t* a_registers;
  uint64_t a, b;
  bool a_is_mn_major, b_is_mn_major, accumulate;
};

// Issued: registers of `d` hold NaN until the wait, unless the product is done at once.
void start_product(const WarpgroupProduct& product, void* d, Site site);
void fence_products(Site site);
void commit_products(Site site);
void wait_for_products(int pending, Site site);
// setmaxnreg: only that all four warps come to it is checked.
void change_registers(int count, Site site);

// What must be over when a block ends.
void end_block_products();

}  // namespace emulator
