// Finds accesses to the same memory that no barrier puts in an order, whatever order they happened in.
//
// In a build with EMULATOR_RACES the compiler calls race.cpp at every load and store of a kernel (-fsanitize=thread,
// with functions of our own in place of its runtime library), and the emulator's instructions report what they access.
// Threads have vector clocks, bytes remember their last accesses (as in Flanagan and Freund, "FastTrack: efficient and
// precise dynamic race detection", PLDI 2009). In other builds all of this is empty.
#pragma once

#include <vector>

#include "grid.h"

namespace emulator {

// Memory whose accesses are watched.
void* allocate_watched(size_t bytes, size_t alignment);

enum class Access { kRead, kWrite, kAtomic };

#if defined(EMULATOR_RACES)

// The last moment of each thread, by rank, and of each agent of the copy engine, that one knows of.
struct Clock {
  std::vector<uint32_t> seen;
  // The same of what an async_proxy_fence made visible to tensor copies and warpgroup products.
  std::vector<uint32_t> fenced;
};

// Who accesses memory: a thread in its present moment, or one copy that it started.
struct Actor {
  Clock clock;
  int id = 0;
  uint32_t time = 0;
};

void race_start_grid(int blocks);
void race_start_block(int block, int threads);

void race_access(const void* address, size_t bytes, Access access, Site site, const Thread* thread = self);
// The same, as the compiler reports it: `where` is an address in the program.
void race_instrumented_access(const void* address, size_t bytes, Access access, uint32_t where);
// By the asynchronous proxy: what ordinary stores left there must have been fenced.
void race_proxy_read(const void* address, size_t bytes, Site site);
void race_proxy_fence();

// Hands what this thread did on to `clock`, and on from there to those who acquire it.
void race_release(Clock& clock);
void race_acquire(const Clock& clock, const Thread* thread = self);

// A copy that this thread starts: it comes after what the thread did so far, and before what acquires `clock` of
// race_end_copy.
Actor race_start_copy();
void race_copy_access(const Actor& copy, const void* address, size_t bytes, Access access, Site site);
void race_end_copy(const Actor& copy, Clock& clock);

#else

struct Clock {};
struct Actor {};

inline void race_start_grid(int) {}
inline void race_start_block(int, int) {}
inline void race_access(const void*, size_t, Access, Site, const Thread* = nullptr) {}
inline void race_proxy_read(const void*, size_t, Site) {}
inline void race_proxy_fence() {}
inline void race_release(Clock&) {}
inline void race_acquire(const Clock&, const Thread* = nullptr) {}
inline Actor race_start_copy() { return {}; }
inline void race_copy_access(const Actor&, const void*, size_t, Access, Site) {}
inline void race_end_copy(const Actor&, Clock&) {}

#endif

}  // namespace emulator
