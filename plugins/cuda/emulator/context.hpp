// Stacks and the switch from one to another. Every switch is announced to the sanitizers, else they take the
// frames of one fiber for those of another (false reports, or a crash while they unwind).
#pragma once
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

#include "language.hpp"

#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
#define EMU_ASSEMBLY
#else
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreReadsBegin(const char*, int);
extern "C" void AnnotateIgnoreReadsEnd(const char*, int);
extern "C" void AnnotateIgnoreWritesBegin(const char*, int);
extern "C" void AnnotateIgnoreWritesEnd(const char*, int);
#endif

namespace emu {

constexpr size_t kStackBytes = 128 << 10, kGuardBytes = 4096;  // frames under ASan are several times larger

// One flow of control: a fiber, or the scheduler itself on the stack that the process gave it.
struct Context {
#ifdef EMU_ASSEMBLY
  void* top = nullptr;  // of the suspended stack
#else
  ucontext_t machine_state;
#endif
  const void* bottom = nullptr;  // ASan: the stack this context runs on, and its saved fake stack
  size_t size = 0;
  void* fake = nullptr;
  void* tsan = nullptr;
};

#ifdef EMU_ASSEMBLY
// Pushes what the System V ABI lets a callee keep (rbx, rbp, r12 to r15, mxcsr, the x87 control word), stores the
// stack's top in *from, and returns on the stack whose top is `to`. Unlike swapcontext it makes no system call.
__attribute__((naked, noinline)) EMU_FAST inline void switch_stack(void** /*from: rdi*/, void* /*to: rsi*/) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "subq $8, %rsp\n stmxcsr (%rsp)\n fnstcw 4(%rsp)\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "fldcw 4(%rsp)\n ldmxcsr (%rsp)\n addq $8, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}
#endif

// What a fiber runs on. It is used again by later blocks: TSan takes 100 microseconds to make one.
struct Strand {
  unsigned char* bottom;  // of kStackBytes
  void* tsan;
};
inline Strand new_strand() {
  void* p = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  mprotect(p, kGuardBytes, PROT_NONE);  // an overflow faults instead of hitting the neighbour
#ifdef __SANITIZE_THREAD__
  return {static_cast<unsigned char*>(p) + kGuardBytes, __tsan_create_fiber(0)};
#else
  return {static_cast<unsigned char*>(p) + kGuardBytes, nullptr};
#endif
}
// Forgets the frames that a fault left behind.
inline void clean(Strand strand) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(strand.bottom, kStackBytes);
#endif
  (void)strand;
}

// Makes `context` enter `entry`, which must not return.
inline void prepare(Context& context, Strand strand, void (*entry)()) {
  unsigned char* const bottom = strand.bottom;
  context.bottom = bottom, context.size = kStackBytes, context.tsan = strand.tsan;
#ifdef EMU_ASSEMBLY
  // From the top down: a return address for `entry` (none), entry's own, six registers, the control words.
  auto* words = reinterpret_cast<uint64_t*>(bottom + kStackBytes) - 9;
  std::memset(words, 0, 9 * sizeof *words);
  uint32_t mxcsr = 0;
  uint16_t control = 0;
  asm volatile("stmxcsr %0\n fnstcw %1" : "=m"(mxcsr), "=m"(control));
  words[0] = mxcsr | uint64_t(control) << 32;
  words[7] = reinterpret_cast<uintptr_t>(entry);
  context.top = words;
#else
  getcontext(&context.machine_state);
  context.machine_state.uc_stack.ss_sp = bottom;
  context.machine_state.uc_stack.ss_size = kStackBytes;
  context.machine_state.uc_link = nullptr;
  makecontext(&context.machine_state, entry, 0);
#endif
}

// The first thing that runs after a switch: `self` goes on, `from` was left.
EMU_FAST inline void arrived(Context& self, Context& from) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(self.fake, &from.bottom, &from.size);
#endif
  (void)self, (void)from;
}

// Leaves `from` for `to`; `last`: never to return. One side of every switch is the scheduler, so who comes back to
// `from` is `to`.
EMU_FAST inline void jump(Context& from, Context& to, bool last = false) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake, to.bottom, to.size);
#endif
#ifdef __SANITIZE_THREAD__
  __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#endif
  (void)last;
#ifdef EMU_ASSEMBLY
  switch_stack(&from.top, to.top);
#else
  swapcontext(&from.machine_state, &to.machine_state);
#endif
  arrived(from, to);
}

// What the emulator itself reads and writes while one of these lives is no race.
struct Internal {
#ifdef __SANITIZE_THREAD__
  Internal() { AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0); }
  ~Internal() { AnnotateIgnoreReadsEnd("", 0), AnnotateIgnoreWritesEnd("", 0); }
#else
  Internal() {}
#endif
};

// What was before release(token) in one thread is before what follows acquire(token) in another. TSan knows of no
// other order: switching fibers orders nothing.
#ifdef __SANITIZE_THREAD__
inline void release(void* token) { __tsan_release(token); }
inline void acquire(void* token) { __tsan_acquire(token); }
#else
inline void release(void*) {}
inline void acquire(void*) {}
#endif

}  // namespace emu
