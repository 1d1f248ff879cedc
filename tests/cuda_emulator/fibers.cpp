#include "fibers.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace emulator {

// Frames of instrumented kernels are large: every local array has its redzones.
constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kGuardBytes = 64 * 1024;

#if defined(__x86_64__)

constexpr int kSavedWords = 6;

extern "C" void emulator_switch_stack(void** saved_stack_pointer, void* next_stack_pointer);
asm(R"(
.text
.type emulator_switch_stack, @function
emulator_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch_stack, .-emulator_switch_stack
)");

static void* first_frame(char* top, void (*entry)()) {
  // `ret` pops the entry; what stands above it keeps the alignment that a call would have left.
  void** frame = reinterpret_cast<void**>(top) - 2;
  memset(frame - kSavedWords, 0, (kSavedWords + 2) * sizeof(void*));
  frame[0] = reinterpret_cast<void*>(entry);
  return frame - kSavedWords;
}

#elif defined(__aarch64__)

constexpr int kSavedWords = 20;

extern "C" void emulator_switch_stack(void** saved_stack_pointer, void* next_stack_pointer);
asm(R"(
.text
.type emulator_switch_stack, %function
emulator_switch_stack:
  stp x29, x30, [sp, #-160]!
  stp x19, x20, [sp, #16]
  stp x21, x22, [sp, #32]
  stp x23, x24, [sp, #48]
  stp x25, x26, [sp, #64]
  stp x27, x28, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #16]
  ldp x21, x22, [sp, #32]
  ldp x23, x24, [sp, #48]
  ldp x25, x26, [sp, #64]
  ldp x27, x28, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x29, x30, [sp], #160
  ret
.size emulator_switch_stack, .-emulator_switch_stack
)");

static void* first_frame(char* top, void (*entry)()) {
  void** frame = reinterpret_cast<void**>(top) - kSavedWords;
  memset(frame, 0, kSavedWords * sizeof(void*));
  frame[1] = reinterpret_cast<void*>(entry);
  return frame;
}

#else

static void* first_frame(char* top, void (*entry)()) {
  auto* context = new ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = top - kStackBytes;
  context->uc_stack.ss_size = kStackBytes;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

static void emulator_switch_stack(void** saved, void* next) {
  if (!*saved) *saved = new ucontext_t;
  swapcontext(static_cast<ucontext_t*>(*saved), static_cast<ucontext_t*>(next));
}

#endif

void make_fiber(Fiber& fiber, void (*entry)()) {
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE)) abort();
  char* bottom = static_cast<char*>(memory) + kGuardBytes;
  fiber.stack_bottom = bottom;
  fiber.stack_size = kStackBytes;
  fiber.stack_pointer = first_frame(bottom + kStackBytes, entry);
}

void switch_fiber(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack_bottom, to.stack_size);
#endif
  emulator_switch_stack(&from.stack_pointer, to.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void enter_fiber([[maybe_unused]] Fiber& from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &from.stack_bottom, &from.stack_size);
#endif
}

}  // namespace emulator
