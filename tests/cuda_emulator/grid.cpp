#include "grid.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "copies.h"
#include "race.h"
#include "transactions.h"
#include "warpgroup.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

// The kernel's object file keeps its static __shared__ variables in this section, and nothing else.
extern "C" {
extern char __start_emulator_shared[] __attribute__((weak));
extern char __stop_emulator_shared[] __attribute__((weak));
}

uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr uint32_t kWindowStart = 1024;
constexpr int kBarriers = 16;

struct Barrier {
  int threads, arrived;
  // Of the threads that have come: how many predicates were true, and what they know.
  int count;
  Clock clock;
};

Thread* self;
char* dynamic_shared;

static Fiber scheduler;
static std::vector<Thread*> threads;
static Barrier barriers[kBarriers];
static int last_count;
static int num_threads;
static const Launch* current;
static uint64_t random_state;

// ---- order ---------------------------------------------------------------------------------------------------------

static uint32_t random_bits() {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return uint32_t(random_state >> 33);
}

// By seed: 0 forward, a step of each warp at a time, with copies done at once; 1 backward, each warp as far as it can,
// with copies as late as allowed; from 2 on at random.
static void put_in_order(std::vector<int>& order, int count) {
  order.resize(count);
  for (int i = 0; i < count; ++i) order[i] = i;
  if (current->seed == 1) std::reverse(order.begin(), order.end());
  if (current->seed < 2) return;
  for (int i = count - 1; i > 0; --i) std::swap(order[i], order[random_bits() % (i + 1)]);
}

bool do_it_now() { return current->seed == 0 || (current->seed >= 2 && random_bits() % 2); }

// ---- reports -------------------------------------------------------------------------------------------------------

static std::string ranges(const std::vector<int>& ranks) {
  std::string text;
  for (size_t i = 0; i < ranks.size();) {
    size_t end = i + 1;
    while (end < ranks.size() && ranks[end] == ranks[end - 1] + 1) ++end;
    text += (i ? ", " : "") + std::to_string(ranks[i]);
    if (end > i + 1) text += "-" + std::to_string(ranks[end - 1]);
    i = end;
  }
  return text;
}

static std::string place_of(const Thread& thread) {
  if (thread.exited) return "exited";
  if (!thread.waits_for) return "running";
  const char* slash = strrchr(thread.site.file, '/');
  return std::string("at ") + thread.waits_for + ", " + (slash ? slash + 1 : thread.site.file) + ":" +
         std::to_string(thread.site.line);
}

static void print_threads() {
  std::vector<std::string> places;
  for (int i = 0; i < num_threads; ++i) {
    std::string place = place_of(*threads[i]);
    if (std::find(places.begin(), places.end(), place) == places.end()) places.push_back(place);
  }
  for (const std::string& place : places) {
    std::vector<int> ranks;
    for (int i = 0; i < num_threads; ++i)
      if (place_of(*threads[i]) == place) ranks.push_back(i);
    fprintf(stderr, "  %s: threads %s\n", place.c_str(), ranges(ranks).c_str());
  }
}

static void print_block() { fprintf(stderr, "block (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z); }

[[noreturn]] static void end_process() {
  fflush(stderr);
  _exit(3);
}

void fail(Site site, const char* format, ...) {
  const char* slash = strrchr(site.file, '/');
  fprintf(stderr, "emulator: %s:%d: ", slash ? slash + 1 : site.file, site.line);
  va_list arguments;
  va_start(arguments, format);
  vfprintf(stderr, format, arguments);
  va_end(arguments);
  if (self) {
    fprintf(stderr, "\n  in thread %d of ", self->rank);
    print_block();
  }
  fprintf(stderr, "\n");
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_print_stack_trace();
#endif
  end_process();
}

[[noreturn]] static void report_deadlock() {
  fprintf(stderr, "emulator: deadlock: no thread of ");
  print_block();
  fprintf(stderr, " can run on\n");
  print_threads();
  end_process();
}

// ---- waiting -------------------------------------------------------------------------------------------------------

static void switch_to_scheduler() {
  Thread* thread = self;
  switch_fiber(thread->fiber, scheduler);
}

void wait(const char* what, Site site, const void* event) {
  self->waits_for = what;
  self->site = site;
  self->event = event;
  switch_to_scheduler();
}

static void go_on(Thread& thread) {
  thread.waits_for = nullptr;
  thread.event = nullptr;
}

void release(const void* event) {
  for (int i = 0; i < num_threads; ++i)
    if (threads[i]->event == event) go_on(*threads[i]);
}

static int alive() {
  int count = 0;
  for (int i = 0; i < num_threads; ++i) count += !threads[i]->exited;
  return count;
}

[[noreturn]] static void report_divergence(const char* what) {
  fprintf(stderr, "emulator: divergence: %s\n", what);
  print_threads();
  end_process();
}

// All warps at the same kind of barrier, each warp in one place.
static void require_agreement(const Barrier& barrier) {
  const char* what = nullptr;
  for (int i = 0; i < num_threads; ++i) {
    const Thread& thread = *threads[i];
    if (thread.event != &barrier) continue;
    if (what && strcmp(what, thread.waits_for)) report_divergence("threads meet at different kinds of barriers");
    what = thread.waits_for;
    if (i % kLanes == 0 || threads[i - 1]->event != &barrier) continue;
    const Site &mine = thread.site, &other = threads[i - 1]->site;
    if (mine.line != other.line || strcmp(mine.file, other.file))
      report_divergence("one warp is at a barrier in two places");
  }
}

static void complete_if_all_came(Barrier& barrier) {
  int expected = barrier.threads ? barrier.threads : alive();
  if (barrier.arrived == 0 || barrier.arrived < expected) return;
  require_agreement(barrier);
  for (int i = 0; i < num_threads; ++i)
    if (threads[i]->event == &barrier) race_acquire(barrier.clock, threads[i]);
  last_count = barrier.count;
  barrier = {};
  release(&barrier);
}

void barrier(const char* what, int id, int count, bool waits, Site site) {
  if (id < 0 || id >= kBarriers) fail(site, "%s: barrier %d does not exist", what, id);
  if (count % kLanes) fail(site, "%s: %d threads are no multiple of 32", what, count);
  if (count > num_threads) fail(site, "%s: %d threads, the block has %d", what, count, num_threads);
  Barrier& barrier = barriers[id];
  if (barrier.arrived && barrier.threads != count)
    fail(site, "%s: barrier %d of %d threads is used with %d", what, id, barrier.threads, count);
  barrier.threads = count;
  ++barrier.arrived;
  race_release(barrier.clock);
  if (!waits) return complete_if_all_came(barrier);
  self->waits_for = what;
  self->site = site;
  self->event = &barrier;
  complete_if_all_came(barrier);
  if (self->waits_for) switch_to_scheduler();
}

int counting_barrier(const char* what, bool predicate, Site site) {
  barriers[0].count += predicate;
  barrier(what, 0, 0, true, site);
  // Of this barrier: the next one cannot end before this thread comes to it.
  return last_count;
}

// ---- operations of a warp ------------------------------------------------------------------------------------------

static int warp_start() { return self->rank / kLanes * kLanes; }

Thread* thread_of_lane(int lane) {
  int rank = warp_start() + lane;
  return rank < num_threads ? threads[rank] : nullptr;
}

static bool takes_part(const Thread* thread, int lane) { return (self->mask >> lane & 1) && thread && !thread->exited; }

// True where every lane of this thread's mask that has not exited waits at the same operation.
static bool all_lanes_came(bool aligned) {
  for (int lane = 0; lane < kLanes; ++lane) {
    Thread* other = thread_of_lane(lane);
    if (!takes_part(other, lane) || other == self) continue;
    if (!other->waits_for) return false;
    bool same_operation = other->operand && other->waits_for == self->waits_for && other->mask == self->mask;
    bool same_place = !aligned || other->site.line == self->site.line;
    if (same_operation && same_place) continue;
    // Another warp or a copy may still let it come here.
    if (!other->operand) return false;
    if (!(other->mask >> (self->rank % kLanes) & 1)) return false;
    report_divergence("lanes of one warp wait for each other at different operations");
  }
  return true;
}

bool warp_meet(const char* what, uint32_t mask, void* operand, bool aligned, Site site) {
  if (!(mask >> (self->rank % kLanes) & 1))
    fail(site, "%s: lane %d is not in its mask %08x", what, self->rank % kLanes, mask);
  if (aligned && mask != 0xFFFFFFFF) fail(site, "%s: needs all lanes", what);
  self->mask = mask;
  self->operand = operand;
  while (true) {
    self->waits_for = what;
    self->site = site;
    if (all_lanes_came(aligned)) break;
    switch_to_scheduler();
    if (!self->operand) return false;
  }
  if (aligned)
    for (int lane = 0; lane < kLanes; ++lane)
      if (!takes_part(thread_of_lane(lane), lane)) fail(site, "%s: lane %d does not take part", what, lane);
  return true;
}

void* warp_operand(int lane) {
  Thread* thread = thread_of_lane(lane);
  return takes_part(thread, lane) ? thread->operand : nullptr;
}

void warp_leave() {
  for (int lane = 0; lane < kLanes; ++lane) {
    Thread* thread = thread_of_lane(lane);
    if (!takes_part(thread, lane)) continue;
    go_on(*thread);
    thread->operand = nullptr;
  }
}

// An exit may be what others waited for: a barrier of all threads, or an operation of the warp, whose waiting lanes
// look again.
static void leave_block() {
  end_thread_transactions();
  self->exited = true;
  complete_if_all_came(barriers[0]);
  for (int lane = 0; lane < kLanes; ++lane) {
    Thread* thread = thread_of_lane(lane);
    if (thread && thread->operand) go_on(*thread);
  }
}

// ---- memory --------------------------------------------------------------------------------------------------------

static size_t static_bytes() { return __stop_emulator_shared - __start_emulator_shared; }

// Static variables keep their place relative to a multiple of 1024, so that their alignment shows in the window.
static uint32_t static_window() {
  size_t end = kWindowStart + (current->shared_bytes + 1023) / 1024 * 1024;
  return uint32_t(end + uintptr_t(__start_emulator_shared) % 1024);
}

static bool within(const void* pointer, size_t bytes, const char* start, size_t size) {
  auto* address = static_cast<const char*>(pointer);
  return address >= start && address + bytes <= start + size;
}

void require_shared(const char* what, const void* pointer, size_t bytes, size_t alignment, Site site) {
  if (!within(pointer, bytes, dynamic_shared, current->shared_bytes) &&
      !within(pointer, bytes, __start_emulator_shared, static_bytes()))
    fail(site, "%s: %zu bytes at %p are not in shared memory", what, bytes, pointer);
  if (uintptr_t(pointer) % alignment) fail(site, "%s: %p is no multiple of %zu", what, pointer, alignment);
}

uint32_t to_window(const void* pointer) {
  auto* address = static_cast<const char*>(pointer);
  if (within(pointer, 0, dynamic_shared, current->shared_bytes))
    return kWindowStart + uint32_t(address - dynamic_shared);
  require_shared("shared_address", pointer, 0, 1, here());
  return static_window() + uint32_t(address - __start_emulator_shared);
}

void* from_window(uint32_t address) {
  if (address >= kWindowStart && address - kWindowStart < current->shared_bytes)
    return dynamic_shared + (address - kWindowStart);
  if (address >= static_window() && address - static_window() < static_bytes())
    return __start_emulator_shared + (address - static_window());
  fail(here(), "0x%x is no address of shared memory", address);
}

// What a block finds in shared memory: NaN in every floating format, -1 in integers. The redzones between static
// variables are overwritten too, so this must not be instrumented.
__attribute__((no_sanitize_address)) static void poison(char* start, size_t bytes) {
  for (volatile char* byte = start; byte != start + bytes; ++byte) *byte = char(0xFF);
}

// ---- launch --------------------------------------------------------------------------------------------------------

static void thread_main() {
  enter_fiber(scheduler);
  while (true) {
    current->kernel(current->arguments);
    leave_block();
    switch_to_scheduler();
  }
}

static uint3 position(unsigned index, uint3 size) {
  return {index % size.x, index / size.x % size.y, index / size.x / size.y};
}

static unsigned volume(uint3 size) { return size.x * size.y * size.z; }

static void prepare_threads() {
  num_threads = int(volume(current->block));
  while (int(threads.size()) < num_threads) {
    Thread* thread = new Thread();
    thread->copies = new_copy_queue();
    make_fiber(thread->fiber, thread_main);
    threads.push_back(thread);
  }
}

static void start_block(unsigned block) {
  blockIdx = position(block, current->grid);
  poison(__start_emulator_shared, static_bytes());
  memset(dynamic_shared, 0xFF, current->shared_bytes);
  race_start_block(int(block), num_threads);
  for (Barrier& barrier : barriers) barrier = {};
  for (int i = 0; i < num_threads; ++i) {
    Thread& thread = *threads[i];
    thread.index = position(unsigned(i), current->block);
    thread.rank = i;
    thread.exited = false;
    thread.operand = nullptr;
    go_on(thread);
    drop_copies(thread.copies);
  }
}

static bool run_lanes(int warp) {
  static std::vector<int> lanes;
  bool progress = false;
  put_in_order(lanes, kLanes);
  for (int lane : lanes) {
    int rank = warp * kLanes + lane;
    if (rank >= num_threads || threads[rank]->exited || threads[rank]->waits_for) continue;
    progress = true;
    self = threads[rank];
    threadIdx = self->index;
    switch_fiber(scheduler, self->fiber);
    self = nullptr;
  }
  return progress;
}

static void run_block() {
  std::vector<int> warps;
  while (alive()) {
    bool progress = false;
    put_in_order(warps, (num_threads + kLanes - 1) / kLanes);
    for (int warp : warps) {
      // A warp that runs as far as it can shows where others rely on being as fast.
      bool far = current->seed == 1 || (current->seed >= 2 && random_bits() % 2);
      while (run_lanes(warp)) {
        progress = true;
        if (!far) break;
      }
    }
    // Copies that may be late are: until nothing else can be done, or by chance.
    bool by_chance = current->seed >= 2 && random_bits() % 2;
    if ((by_chance || !progress) && do_a_copy()) progress = true;
    if (!progress) report_deadlock();
  }
  end_block_products();
  end_block_transactions();
}

void run(const Launch& launch) {
  current = &launch;
  random_state = launch.seed;
  blockDim = launch.block;
  gridDim = launch.grid;
  // The launches of one process are all alike.
  if (!dynamic_shared) dynamic_shared = static_cast<char*>(allocate_watched(launch.shared_bytes, 1024));
  prepare_threads();
  std::vector<int> blocks;
  put_in_order(blocks, int(volume(launch.grid)));
  race_start_grid(int(blocks.size()));
  for (int block : blocks) {
    start_block(unsigned(block));
    run_block();
  }
}

}  // namespace emulator
