#include "race.h"

#include <stdio.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <vector>

#include "block.h"
#include "race_cells.h"

#if !defined(EMULATOR_RACES)

namespace emulator {

void order_lanes() {}
void note_atomic(const void*, size_t, Site) {}

}  // namespace emulator

#else

namespace emulator {

// Threads of one block that start tensor copies.
constexpr int kMaxAgents = 32;

// ---- who knows what ------------------------------------------------------------------------------------------------

static std::vector<Actor> actors;
// The agent, if any, and its last moment, by rank of the thread whose copies it does.
static std::map<int, int> agents;
static std::vector<uint32_t> agent_times;
static int num_ids;
static int current_block;
// Blocks that a block knows of through atomics; by address, blocks whose atomics came before.
using Blocks = std::vector<bool>;
static Blocks known_blocks;
static std::map<const void*, Blocks> blocks_at;

static void join(std::vector<uint32_t>& into, const std::vector<uint32_t>& from) {
  if (from.empty()) return;
  into.resize(size_t(num_ids));
  for (int i = 0; i < num_ids; ++i) into[i] = std::max(into[i], from[i]);
}

void race_start_grid(int blocks) {
  forget_global_memory();
  known_blocks.resize(size_t(blocks));
  blocks_at.clear();
}

void race_start_block(int block, int count) {
  current_block = block;
  num_ids = count + kMaxAgents;
  std::fill(known_blocks.begin(), known_blocks.end(), false);
  forget_shared_memory();
  agents.clear();
  agent_times.clear();
  actors.resize(size_t(count));
  for (int i = 0; i < count; ++i) {
    Actor& thread = actors[i];
    thread.id = i;
    thread.time = 1;
    thread.clock.seen.assign(size_t(num_ids), 0);
    thread.clock.fenced.assign(size_t(num_ids), 0);
    thread.clock.seen[i] = 1;
  }
}

static void next_moment(Actor& thread) { thread.clock.seen[thread.id] = ++thread.time; }

void race_release(Clock& clock) {
  Actor& thread = actors[self->rank];
  join(clock.seen, thread.clock.seen);
  join(clock.fenced, thread.clock.fenced);
  next_moment(thread);
}

void race_acquire(const Clock& clock, const Thread* of) {
  Actor& thread = actors[of->rank];
  join(thread.clock.seen, clock.seen);
  join(thread.clock.fenced, clock.fenced);
}

void race_proxy_fence() {
  Clock& clock = actors[self->rank].clock;
  clock.fenced = clock.seen;
  next_moment(actors[self->rank]);
}

void order_lanes() {
  Clock common;
  int first = self->rank / kLanes * kLanes;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp_operand(lane)) continue;
    join(common.seen, actors[first + lane].clock.seen);
    join(common.fenced, actors[first + lane].clock.fenced);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp_operand(lane)) continue;
    Actor& thread = actors[first + lane];
    thread.clock = common;
    next_moment(thread);
  }
}

// ---- reports -------------------------------------------------------------------------------------------------------

static void print_access(const char* verb, const Moment& moment) {
  if (moment.id < num_threads)
    fprintf(stderr, "  thread %d of block %d %s it", moment.id, moment.block, verb);
  else
    fprintf(stderr, "  a tensor copy of block %d %s it", moment.block, verb);
  print_where(moment.where);
}

[[noreturn]] static void report(const char* what, const void* address, const char* verb, const Moment& now,
                                const char* verb_before, const Moment& before) {
  fprintf(stderr, "emulator: %s: ", what);
  auto* byte = static_cast<const char*>(address);
  if (size_t(byte - static_shared()) < static_bytes())
    fprintf(stderr, "byte %td of static shared memory\n", byte - static_shared());
  else if (byte >= dynamic_shared)
    fprintf(stderr, "byte %td of dynamic shared memory\n", byte - dynamic_shared);
  else
    fprintf(stderr, "a byte of global memory\n");
  print_access(verb, now);
  print_access(verb_before, before);
  _exit(3);
}

// ---- accesses ------------------------------------------------------------------------------------------------------

static bool comes_before(const Moment& before, const Actor& actor) {
  if (before.block != current_block) return known_blocks[before.block];
  return actor.clock.seen[before.id] >= before.time;
}

static void check_against_write(const Cell& cell, const Actor& actor, const Moment& now, const void* address,
                                const char* verb) {
  const Moment& write = cell.write;
  if (write.time && !(write.atomic && now.atomic) && !comes_before(write, actor))
    report("race", address, verb, now, "wrote", write);
}

static void check_against_reads(const Cell& cell, const Actor& actor, const Moment& now, const void* address) {
  if (cell.reads) {
    for (const Moment& read : reads_of(cell))
      if (!comes_before(read, actor)) report("race", address, "writes", now, "read", read);
  } else if (cell.read.time && !comes_before(cell.read, actor)) {
    report("race", address, "writes", now, "read", cell.read);
  }
}

static void remember_read(Cell& cell, const Actor& actor, const Moment& now) {
  auto replaces = [&](const Moment& read) {
    return (read.id == now.id && read.block == now.block) || comes_before(read, actor);
  };
  if (!cell.reads && (!cell.read.time || replaces(cell.read))) {
    cell.read = now;
    return;
  }
  if (!cell.reads) begin_list_of_reads(cell);
  std::vector<Moment>& reads = reads_of(cell);
  auto found = std::find_if(reads.begin(), reads.end(), replaces);
  if (found == reads.end())
    reads.push_back(now);
  else
    *found = now;
}

static void note(const Actor& actor, const void* address, size_t bytes, Access access, uint32_t where) {
  Cell* cell = cells_of(address);
  if (!cell) return;
  bool atomic = access == Access::kAtomic;
  Moment now = {actor.time, int16_t(actor.id), atomic, current_block, where};
  auto is_now = [&](const Moment& moment) {
    return moment.time == now.time && moment.id == now.id && moment.block == now.block && moment.atomic == atomic;
  };
  auto* byte = static_cast<const char*>(address);
  for (size_t i = 0; i < bytes; ++i, ++cell, ++byte) {
    if (access == Access::kRead) {
      if (!cell->reads && is_now(cell->read)) continue;
      check_against_write(*cell, actor, now, byte, "reads");
      remember_read(*cell, actor, now);
    } else {
      if (is_now(cell->write) && !cell->reads && !cell->read.time) continue;
      check_against_write(*cell, actor, now, byte, "writes");
      check_against_reads(*cell, actor, now, byte);
      forget(cell, 1);
      cell->write = now;
    }
  }
}

void race_access(const void* address, size_t bytes, Access access, Site site, const Thread* thread) {
  note(actors[thread->rank], address, bytes, access, where_of(site));
}

static void require_fenced(const Actor& actor, const void* address, size_t bytes, Site site) {
  Cell* cell = cells_of(address);
  for (size_t i = 0; cell && i < bytes; ++i, ++cell) {
    const Moment& write = cell->write;
    if (!write.time || write.id >= num_threads || actor.clock.fenced[write.id] >= write.time) continue;
    Moment now = {actor.time, int16_t(actor.id), false, current_block, where_of(site)};
    report("no async_proxy_fence came between", static_cast<const char*>(address) + i, "reads", now, "wrote", write);
  }
}

void race_proxy_read(const void* address, size_t bytes, Site site) {
  const Actor& thread = actors[self->rank];
  note(thread, address, bytes, Access::kRead, where_of(site));
  require_fenced(thread, address, bytes, site);
}

void note_atomic(const void* address, size_t bytes, Site site) {
  note(actors[self->rank], address, bytes, Access::kAtomic, where_of(site));
  Blocks& blocks = blocks_at[address];
  blocks.resize(known_blocks.size());
  for (size_t i = 0; i < blocks.size(); ++i)
    if (blocks[i]) known_blocks[i] = true;
  blocks = known_blocks;
  blocks[current_block] = true;
}

// ---- copies --------------------------------------------------------------------------------------------------------

Actor race_start_copy() {
  Actor& thread = actors[self->rank];
  auto [found, added] = agents.try_emplace(self->rank, int(agents.size()));
  int agent = found->second;
  if (agent >= kMaxAgents) fail(here(), "more than %d threads of a block start tensor copies", kMaxAgents);
  agent_times.resize(std::max(agent_times.size(), size_t(agent) + 1));
  Actor copy = {thread.clock, num_threads + agent, ++agent_times[agent]};
  next_moment(thread);
  return copy;
}

void race_copy_access(const Actor& copy, const void* address, size_t bytes, Access access, Site site) {
  note(copy, address, bytes, access, where_of(site));
  if (access == Access::kRead) require_fenced(copy, address, bytes, site);
}

void race_end_copy(const Actor& copy, Clock& clock) {
  clock.seen.resize(size_t(num_ids));
  clock.seen[copy.id] = std::max(clock.seen[copy.id], copy.time);
}

// ---- what the compiler calls ---------------------------------------------------------------------------------------

void race_instrumented_access(const void* address, size_t bytes, Access access, uint32_t where) {
  note(actors[self->rank], address, bytes, access, where);
}

}  // namespace emulator

#endif
