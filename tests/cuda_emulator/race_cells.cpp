#include "race_cells.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>

#include "block.h"
#include "race.h"

namespace emulator {

#if !defined(EMULATOR_RACES)

void* allocate_watched(size_t bytes, size_t alignment) {
  void* memory = nullptr;
  // Exactly the bytes that were asked for, so that AddressSanitizer sees one more.
  if (posix_memalign(&memory, alignment, bytes)) abort();
  return memory;
}

#else

constexpr size_t kArenaBytes = size_t(1) << 31;

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

Cell* cells_of(const void* address) {
  auto* byte = static_cast<const char*>(address);
  if (size_t(byte - arena) < arena_used) return arena_cells + (byte - arena);
  if (size_t(byte - static_shared()) < static_bytes()) return &static_cells[byte - static_shared()];
  return nullptr;
}

void forget(Cell* cells, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (cells[i].reads) free_reads.push_back(cells[i].reads);
    cells[i] = {};
  }
}

uint32_t where_of(Site site) {
  auto same = [=](const Site& other) { return other.line == site.line && !strcmp(other.file, site.file); };
  size_t position = std::find_if(sites.begin(), sites.end(), same) - sites.begin();
  if (position == sites.size()) sites.push_back(site);
  return kSiteBit | uint32_t(position);
}

void forget_global_memory() {
  forget(arena_cells, arena_used);
  static_cells.resize(static_bytes());
}

// Dynamic shared memory is the last that was allocated.
void forget_shared_memory() {
  forget(static_cells.data(), static_cells.size());
  forget(cells_of(dynamic_shared), size_t(arena + arena_used - dynamic_shared));
}

std::vector<Moment>& reads_of(const Cell& cell) { return more_reads[cell.reads - 1]; }

void begin_list_of_reads(Cell& cell) {
  if (free_reads.empty()) {
    more_reads.emplace_back();
    free_reads.push_back(uint32_t(more_reads.size()));
  }
  cell.reads = free_reads.back();
  free_reads.pop_back();
  reads_of(cell).assign(1, cell.read);
}

// machine.py replaces @0x... by the place in the source.
void print_where(uint32_t where) {
  if (where & kSiteBit)
    fprintf(stderr, " at %s:%d\n", sites[where & ~kSiteBit].file, sites[where & ~kSiteBit].line);
  else
    fprintf(stderr, " at @0x%x\n", where - 1);
}

#endif

}  // namespace emulator
