// What -fsanitize=thread calls, in place of its own runtime library.
#include "race.h"

#if defined(EMULATOR_RACES)

using emulator::Access;

static void on_access(const void* address, size_t bytes, Access access, const void* caller) {
  if (emulator::self) emulator::race_instrumented_access(address, bytes, access, uint32_t(uintptr_t(caller)));
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
