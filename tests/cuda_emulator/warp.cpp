#include "block.h"

namespace emulator {

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

void recheck_warp() {
  for (int lane = 0; lane < kLanes; ++lane) {
    Thread* thread = thread_of_lane(lane);
    if (thread && thread->operand) go_on(*thread);
  }
}

}  // namespace emulator
