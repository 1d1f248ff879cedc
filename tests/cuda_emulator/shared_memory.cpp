#include <string.h>

#include "block.h"

// The kernel's object file keeps its static __shared__ variables in this section, and nothing else.
extern "C" {
extern char __start_emulator_shared[] __attribute__((weak));
extern char __stop_emulator_shared[] __attribute__((weak));
}

namespace emulator {

constexpr uint32_t kWindowStart = 1024;

char* dynamic_shared;

char* static_shared() { return __start_emulator_shared; }

size_t static_bytes() { return size_t(__stop_emulator_shared - __start_emulator_shared); }

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

// The redzones between static variables are overwritten too, so this must not be instrumented.
__attribute__((no_sanitize_address)) static void poison(char* start, size_t bytes) {
  for (volatile char* byte = start; byte != start + bytes; ++byte) *byte = char(0xFF);
}

void poison_shared_memory() {
  poison(__start_emulator_shared, static_bytes());
  memset(dynamic_shared, 0xFF, current->shared_bytes);
}

}  // namespace emulator
