#include <string.h>

#include "block.h"
#include "race.h"

namespace emulator {

constexpr int kBarriers = 16;

struct Barrier {
  int threads, arrived;
  // Of the threads that have come: how many predicates were true, and what they know.
  int count;
  Clock clock;
};

static Barrier barriers[kBarriers];
static int last_count;

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
  int expected = barrier.threads ? barrier.threads : num_alive;
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

void start_barriers() {
  for (Barrier& barrier : barriers) barrier = {};
}

void recheck_barriers() { complete_if_all_came(barriers[0]); }

}  // namespace emulator
