// The block that runs: what the parts of the emulator that know threads share.
#pragma once

#include <vector>

#include "grid.h"

namespace emulator {

extern const Launch* current;
extern int num_threads;
// Threads that have not exited.
extern int num_alive;
// By rank; more of them may be left from a larger block.
extern std::vector<Thread*> threads;

void go_on(Thread& thread);
void switch_to_scheduler();

// A thread has exited: this may be what others waited for.
void start_barriers();
void recheck_barriers();
void recheck_warp();

// The kernel's static __shared__ variables; address, and bytes with what lies between them.
char* static_shared();
size_t static_bytes();
// Fills shared memory with what a block finds there: NaN in every floating format, -1 in integers.
void poison_shared_memory();

[[noreturn]] void report_deadlock();
[[noreturn]] void report_divergence(const char* what);

}  // namespace emulator
