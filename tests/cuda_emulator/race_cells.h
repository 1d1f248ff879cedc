// What each byte of watched memory remembers of its last accesses.
#pragma once

#include <vector>

#include "grid.h"

namespace emulator {

// One access: who (a thread's rank or an agent's number) in which block and moment, and from where in the source.
struct Moment {
  uint32_t time;
  int16_t id;
  bool atomic;
  int32_t block;
  // An address in the program, or what `where_of` made of a place in the source.
  uint32_t where;
};

struct Cell {
  Moment write;
  Moment read;
  // A list of `reads_of`, from 1 on, where reads by several threads are in no order; `read` is then unused.
  uint32_t reads;
};

// Null for memory that is not watched: the threads' own variables.
Cell* cells_of(const void* address);
void forget(Cell* cells, size_t count);
void forget_global_memory();
void forget_shared_memory();

std::vector<Moment>& reads_of(const Cell& cell);
// Gives the cell a list with its one read.
void begin_list_of_reads(Cell& cell);

uint32_t where_of(Site site);
// " at file:line", or the address in the form that machine.py replaces.
void print_where(uint32_t where);

}  // namespace emulator
