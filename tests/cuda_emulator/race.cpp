#include "race.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <vector>

#if !defined(EMULATOR_RACES)

namespace emulator {

void* allocate_watched(size_t bytes, size_t alignment) {
  void* memory = nullptr;
  // Exactly the bytes that were asked for, so that AddressSanitizer sees one more.
  if (posix_memalign(&memory, alignment, bytes)) abort();
  return memory;
}

void order_lanes() {}
void note_atomic(const void*, size_t, Site) {}

}  // namespace emulator

#else

extern "C" {
extern char __start_emulator_shared[] __attribute__((weak));
extern char __stop_emulator_shared[] __attribute__((weak));
}

namespace emulator {

constexpr size_t kArenaBytes = size_t(1) << 31;
// Threads of one block that start tensor copies.
constexpr int kMaxAgents = 32;
constexpr int kMaxThreads = 1024;

// ---- what bytes remember -------------------------------------------------------------------------------------------

// One access: who (a thread's rank or an agent's number) in which block and moment, and from where in the source.
struct Moment {
  uint32_t time;
  int16_t id;
  bool atomic;
  int32_t block;
  // An address in the program, or a place in `sites`.
  uint32_t where;
};

struct Cell {
  Moment write;
  Moment read;
  // Position in `more_reads`, from 1 on, where reads by several threads are in no order; `read` is then unused.
  uint32_t reads;
};

static char* arena;
static size_t arena_used;
// Cells of the arena, then of static shared memory.
static Cell* arena_cells;
static std::vector<Cell> static_cells;
static std::vector<std::vector<Moment> > more_reads;
static std::vector<uint32_t> free_reads;
static std::vector<Site> sites;
constexpr uint32_t kSiteBit = 0x80000000;

void* allocate_watched(size_t bytes, size_t alignment) {
  if (!arena) {
    auto reserve = [](size_t bytes) {
      int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
      void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
      if (memory == MAP_FAILED) abort();
      return memory;
    };
    arena = static_cast<char*>(reserve(kArenaBytes));
    arena_cells = static_cast<Cell*>(reserve(kArenaBytes * sizeof(Cell)));
  }
  arena_used = (arena_used + alignment - 1) / alignment * alignment;
  char* memory = arena + arena_used;
  arena_used += bytes;
  if (arena_used > kArenaBytes) abort();
  return memory;
}

static size_t static_bytes() { return __stop_emulator_shared - __start_emulator_shared; }

// Null for memory that is not watched: the threads' own variables.
static Cell* cells_of(const void* address) {
  auto* byte = static_cast<const char*>(address);
  if (size_t(byte - arena) < arena_used) return arena_cells + (byte - arena);
  if (size_t(byte - __start_emulator_shared) < static_bytes()) return &static_cells[byte - __start_emulator_shared];
  return nullptr;
}

static void forget(Cell* cells, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (cells[i].reads) free_reads.push_back(cells[i].reads);
    cells[i] = {};
  }
}

static uint32_t where_of(Site site) {
  auto same = [=](const Site& other) { return other.line == site.line && !strcmp(other.file, site.file); };
  size_t position = std::find_if(sites.begin(), sites.end(), same) - sites.begin();
  if (position == sites.size()) sites.push_back(site);
  return kSiteBit | uint32_t(position);
}

// ---- who knows what ------------------------------------------------------------------------------------------------

static std::vector<Actor> threads;
// The agent, if any, and its last moment, by rank of the thread whose copies it does.
static std::map<int, int> agents;
static std::vector<uint32_t> agent_times;
static int num_ids;
static int current_block;
// Blocks that a block knows of through atomics; by address, blocks whose atomics came before.
static std::vector<bool> known_blocks;
static std::map<const void*, std::vector<bool> > blocks_at;

static void join(std::vector<uint32_t>& into, const std::vector<uint32_t>& from) {
  if (from.empty()) return;
  into.resize(size_t(num_ids));
  for (int i = 0; i < num_ids; ++i) into[i] = std::max(into[i], from[i]);
}

void race_start_grid(int blocks) {
  forget(arena_cells, arena_used);
  static_cells.resize(static_bytes());
  known_blocks.resize(size_t(blocks));
  blocks_at.clear();
}

void race_start_block(int block, int count) {
  current_block = block;
  num_ids = count + kMaxAgents;
  std::fill(known_blocks.begin(), known_blocks.end(), false);
  forget(static_cells.data(), static_cells.size());
  if (Cell* cells = cells_of(dynamic_shared)) forget(cells, arena + arena_used - dynamic_shared);
  agents.clear();
  agent_times.clear();
  threads.resize(size_t(count));
  for (int i = 0; i < count; ++i) {
    Actor& thread = threads[i];
    thread.id = i;
    thread.time = 1;
    thread.clock.seen.assign(size_t(num_ids), 0);
    thread.clock.fenced.assign(size_t(num_ids), 0);
    thread.clock.seen[i] = 1;
  }
}

static void next_moment(Actor& thread) { thread.clock.seen[thread.id] = ++thread.time; }

void race_release(Clock& clock) {
  Actor& thread = threads[self->rank];
  join(clock.seen, thread.clock.seen);
  join(clock.fenced, thread.clock.fenced);
  next_moment(thread);
}

void race_acquire(const Clock& clock, const Thread* of) {
  Actor& thread = threads[of->rank];
  join(thread.clock.seen, clock.seen);
  join(thread.clock.fenced, clock.fenced);
}

void race_proxy_fence() {
  Clock& clock = threads[self->rank].clock;
  clock.fenced = clock.seen;
  next_moment(threads[self->rank]);
}

void order_lanes() {
  Clock common;
  int first = self->rank / kLanes * kLanes;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp_operand(lane)) continue;
    join(common.seen, threads[first + lane].clock.seen);
    join(common.fenced, threads[first + lane].clock.fenced);
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!warp_operand(lane)) continue;
    Actor& thread = threads[first + lane];
    thread.clock = common;
    next_moment(thread);
  }
}

// ---- reports -------------------------------------------------------------------------------------------------------

// machine.py replaces @0x... by the place in the source.
static void print_where(uint32_t where) {
  if (where & kSiteBit)
    fprintf(stderr, " at %s:%d\n", sites[where & ~kSiteBit].file, sites[where & ~kSiteBit].line);
  else
    fprintf(stderr, " at @0x%x\n", where - 1);
}

static void print_access(const char* verb, const Moment& moment) {
  int num_threads = num_ids - kMaxAgents;
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
  if (size_t(byte - __start_emulator_shared) < static_bytes())
    fprintf(stderr, "byte %td of static shared memory\n", byte - __start_emulator_shared);
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
    for (const Moment& read : more_reads[cell.reads - 1])
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
  if (!cell.reads) {
    if (free_reads.empty()) {
      more_reads.emplace_back();
      free_reads.push_back(uint32_t(more_reads.size()));
    }
    cell.reads = free_reads.back();
    free_reads.pop_back();
    more_reads[cell.reads - 1].assign(1, cell.read);
  }
  std::vector<Moment>& reads = more_reads[cell.reads - 1];
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
      if (cell->reads) free_reads.push_back(cell->reads);
      *cell = {now, {}, 0};
    }
  }
}

void race_access(const void* address, size_t bytes, Access access, Site site, const Thread* thread) {
  note(threads[thread->rank], address, bytes, access, where_of(site));
}

static void require_fenced(const Actor& actor, const void* address, size_t bytes, Site site) {
  Cell* cell = cells_of(address);
  for (size_t i = 0; cell && i < bytes; ++i, ++cell) {
    const Moment& write = cell->write;
    int num_threads = num_ids - kMaxAgents;
    if (!write.time || write.id >= num_threads || actor.clock.fenced[write.id] >= write.time) continue;
    Moment now = {actor.time, int16_t(actor.id), false, current_block, where_of(site)};
    report("no async_proxy_fence came between", static_cast<const char*>(address) + i, "reads", now, "wrote", write);
  }
}

void race_proxy_read(const void* address, size_t bytes, Site site) {
  const Actor& thread = threads[self->rank];
  note(thread, address, bytes, Access::kRead, where_of(site));
  require_fenced(thread, address, bytes, site);
}

void note_atomic(const void* address, size_t bytes, Site site) {
  note(threads[self->rank], address, bytes, Access::kAtomic, where_of(site));
  std::vector<bool>& blocks = blocks_at[address];
  blocks.resize(known_blocks.size());
  for (size_t i = 0; i < blocks.size(); ++i)
    if (blocks[i]) known_blocks[i] = true;
  blocks = known_blocks;
  blocks[current_block] = true;
}

// ---- copies --------------------------------------------------------------------------------------------------------

Actor race_start_copy() {
  Actor& thread = threads[self->rank];
  auto [found, added] = agents.try_emplace(self->rank, int(agents.size()));
  int agent = found->second;
  if (agent >= kMaxAgents) fail(here(), "more than %d threads of a block start tensor copies", kMaxAgents);
  agent_times.resize(std::max(agent_times.size(), size_t(agent) + 1));
  Actor copy = {thread.clock, num_ids - kMaxAgents + agent, ++agent_times[agent]};
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

}  // namespace emulator

using emulator::Access;

static void on_access(const void* address, size_t bytes, Access access, const void* caller) {
  if (emulator::self)
    emulator::note(emulator::threads[emulator::self->rank], address, bytes, access, uint32_t(uintptr_t(caller)));
}

#define HOOKS(bytes)                                                                                              \
  void __tsan_read##bytes(void* p) { on_access(p, bytes, Access::kRead, __builtin_return_address(0)); }           \
  void __tsan_write##bytes(void* p) { on_access(p, bytes, Access::kWrite, __builtin_return_address(0)); }         \
  void __tsan_unaligned_read##bytes(void* p) { on_access(p, bytes, Access::kRead, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##bytes(void* p) { on_access(p, bytes, Access::kWrite, __builtin_return_address(0)); }

extern "C" {
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, size_t bytes) { on_access(p, bytes, Access::kRead, __builtin_return_address(0)); }
void __tsan_write_range(void* p, size_t bytes) { on_access(p, bytes, Access::kWrite, __builtin_return_address(0)); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}

#endif
