// Hopper's transaction barriers, and the tensor copies that they count.
#pragma once

#include "grid.h"

namespace emulator {

void barrier_init(uint64_t* barrier, int count, Site site);
// This thread's new barriers may be used by copies.
void barrier_init_fence();
// One arrival, and `bytes` more to wait for.
void barrier_arrive(uint64_t* barrier, int bytes, Site site);
void barrier_wait(uint64_t* barrier, int parity, Site site);

// What this thread stored may be read by copies and products. Only the detection of races looks at it.
void proxy_fence();

void start_tensor_load(void* shared, const void* map, uint64_t* barrier, const int* place, int rank, Site site);
void start_tensor_store(const void* map, const void* shared, const int* place, int rank, Site site);
void commit_tensor_stores();
void wait_for_tensor_stores(int pending);

// ---- for the scheduler ---------------------------------------------------------------------------------------------

// Does one of the copies under way; false where there is none.
bool do_a_copy();
// What must be over when a thread or its block ends.
void end_thread_transactions();
void end_block_transactions();

}  // namespace emulator
