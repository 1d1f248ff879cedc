// A grid of blocks of threads on the CPU: blocks run one after another, the threads of a block are fibers.
//
// A thread runs until it has to wait for others. Which of those that can run is next depends on the launch's seed, and
// so does how early an asynchronous copy is done: results must not depend on either.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "fibers.h"

struct uint3 {
  unsigned int x, y, z;
};

// CUDA's own names; threadIdx is set at each switch of threads.
extern uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr int kLanes = 32;

// A place in a kernel's source, for reports; `here()` as a default argument is the place of the call.
struct Site {
  const char* file;
  int line;
};

constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

// A group of cp.async copies of 16 bytes that was not waited for yet; defined in copies.cpp.
struct CopyQueue;

struct Thread {
  Fiber fiber;
  uint3 index;
  int rank;
  bool exited;
  // What the thread waits for, where, and the object whose release lets it go on; null: it can run.
  const char* waits_for;
  Site site;
  const void* event;
  // Its part in the collective operation of a warp at which it waits.
  uint32_t mask;
  void* operand;
  CopyQueue* copies;
};

extern Thread* self;

// Prints the message with the running thread and where it is, and ends the process.
[[noreturn]] void fail(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Lets other threads run until `release(event)`.
void wait(const char* what, Site site, const void* event);
void release(const void* event);
bool is_awaited(const void* event);

// Barrier `id` of a block. `threads` 0: all that have not exited.
void barrier(const char* what, int id, int threads, bool waits, Site site);
// Barrier 0, and the number of threads that came with a true `predicate`.
int counting_barrier(const char* what, bool predicate, Site site);

// ---- operations of a warp ------------------------------------------------------------------------------------------

// Comes to the operation `what` of the lanes in `mask`. True in one lane, when all have come: it reads and writes
// everybody's operands, then calls `warp_leave`, which lets the others return false.
bool warp_meet(const char* what, uint32_t mask, void* operand, bool aligned, Site site);
void* warp_operand(int lane);
Thread* thread_of_lane(int lane);
void warp_leave();

// The operands of the lanes that take part; null for the others.
template <class Operand>
struct Lanes {
  Operand* operator[](int lane) const { return static_cast<Operand*>(warp_operand(lane)); }
};

// Runs `work(Lanes<Operand>)` once for all lanes of `mask`. Where `aligned`, they must have come to the same line of
// the source, as the hardware demands of instructions that PTX calls aligned.
template <class Operand, class Work>
void warp_collective(const char* what, uint32_t mask, Operand& operand, bool aligned, Site site, Work work) {
  if (warp_meet(what, mask, &operand, aligned, site)) {
    work(Lanes<Operand>());
    warp_leave();
  }
}

// Inside the work of a collective: what each lane did before comes before what any of them does after.
void order_lanes();

// ---- memory --------------------------------------------------------------------------------------------------------

extern char* dynamic_shared;

// Fails unless `bytes` at `pointer` are shared memory (static or dynamic) at a multiple of `alignment`.
void require_shared(const char* what, const void* pointer, size_t bytes, size_t alignment, Site site);

// The address of shared memory in the 32-bit window in which the hardware sees it, and back.
uint32_t to_window(const void* pointer);
void* from_window(uint32_t address);

// For the detection of races: the running thread's atomic operation.
void note_atomic(const void* address, size_t bytes, Site site);

// ---- order ---------------------------------------------------------------------------------------------------------

// True where an asynchronous operation that may be done now or later is to be done now.
bool do_it_now();

// ---- launch --------------------------------------------------------------------------------------------------------

struct Launch {
  uint3 grid, block;
  size_t shared_bytes;
  uint64_t seed;
  // Every thread calls it once.
  void (*kernel)(const void* arguments);
  const void* arguments;
};

void run(const Launch& launch);

}  // namespace emulator
