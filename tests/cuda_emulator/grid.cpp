#include "grid.h"

#include <algorithm>
#include <vector>

#include "block.h"
#include "copies.h"
#include "race.h"
#include "transactions.h"
#include "warpgroup.h"

uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

Thread* self;
const Launch* current;
int num_threads, num_alive;
std::vector<Thread*> threads;

static Fiber scheduler;
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

// ---- waiting -------------------------------------------------------------------------------------------------------

void switch_to_scheduler() {
  Thread* thread = self;
  switch_fiber(thread->fiber, scheduler);
}

void wait(const char* what, Site site, const void* event) {
  self->waits_for = what;
  self->site = site;
  self->event = event;
  switch_to_scheduler();
}

void go_on(Thread& thread) {
  thread.waits_for = nullptr;
  thread.event = nullptr;
}

bool is_awaited(const void* event) {
  return std::any_of(threads.begin(), threads.begin() + num_threads,
                     [=](const Thread* thread) { return thread->event == event; });
}

void release(const void* event) {
  for (int i = 0; i < num_threads; ++i)
    if (threads[i]->event == event) go_on(*threads[i]);
}

// Others may have waited for it.
static void leave_block() {
  end_thread_transactions();
  self->exited = true;
  --num_alive;
  recheck_barriers();
  recheck_warp();
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
  poison_shared_memory();
  race_start_block(int(block), num_threads);
  start_barriers();
  num_alive = num_threads;
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
  while (num_alive) {
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
