// Stacks that take turns on one thread of the CPU.
#pragma once

#include <stddef.h>

namespace emulator {

struct Fiber {
  void* stack_pointer = nullptr;
  // For AddressSanitizer, which must know whose frames it looks at.
  const void* stack_bottom = nullptr;
  size_t stack_size = 0;
  void* fake_stack = nullptr;
};

// Gives `fiber` a stack of its own, with a page before it that faults. The first switch to it calls `entry`, which must
// never return.
void make_fiber(Fiber& fiber, void (*entry)());

// Saves the running fiber in `from` and goes on with `to`.
void switch_fiber(Fiber& from, Fiber& to);

// The first call on each new fiber; `from` is the one that switched to it.
void enter_fiber(Fiber& from);

}  // namespace emulator
