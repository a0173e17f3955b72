// Atomics and fences.
//
// CUDA's atomics are relaxed: they order no other memory. Two threads that talk through one need a __threadfence before
// it in the one that writes, and after it in the one that reads (PTX ISA, "Memory consistency model", release and
// acquire patterns). For TSan, an atomic of a thread that has fenced publishes what that thread knows, and a fence
// takes in what the block's atomics have met. A fence that is missing while another of the same thread came earlier is
// not found.
#pragma once
#include <type_traits>

#include "machine.hpp"

namespace emu {

// Every atomic is a place where another thread may come first.
inline void maybe_yield() {
  Internal guard;
  if (machine.random() % 16 == 0) yield();
}

template <class T, class F>
T atomic_update(T* p, F f) {
  maybe_yield();
  T old, next;
  __atomic_load(p, &old, __ATOMIC_RELAXED);
  do next = f(old);
  while (!__atomic_compare_exchange(p, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  Internal guard;
  machine.updated.insert(p);
  if (machine.cur->fenced) release(p);
  return old;
}

inline void thread_fence() {
  Internal guard;
  machine.cur->fenced = true;
  for (void* p : machine.updated) acquire(p);
}

template <class T, class... Allowed>
constexpr bool kOneOf = (std::is_same_v<T, Allowed> || ...);
template <class T>
constexpr bool kAtomicInteger = kOneOf<T, int, unsigned, unsigned long long>;

}  // namespace emu

// name(p, v): *p becomes the expression of its old value and v; `allowed` types are those that CUDA has.
#define EMU_ATOMIC(name, expression, ...)                                              \
  template <class T>                                                                   \
  T name(T* p, std::common_type_t<T> v) {                                              \
    static_assert(__VA_ARGS__, #name " has no form for this type");                    \
    return emu::atomic_update(p, [=]([[maybe_unused]] T old) { return T(expression); });                \
  }
EMU_ATOMIC(atomicAdd, old + v, emu::kAtomicInteger<T> || emu::kOneOf<T, float, double>)
EMU_ATOMIC(atomicSub, old - v, emu::kOneOf<T, int, unsigned>)
EMU_ATOMIC(atomicMax, old < v ? v : old, emu::kAtomicInteger<T> || emu::kOneOf<T, long long>)
EMU_ATOMIC(atomicMin, v < old ? v : old, emu::kAtomicInteger<T> || emu::kOneOf<T, long long>)
EMU_ATOMIC(atomicExch, v, emu::kAtomicInteger<T> || emu::kOneOf<T, float>)
EMU_ATOMIC(atomicAnd, old & v, emu::kAtomicInteger<T>)
EMU_ATOMIC(atomicOr, old | v, emu::kAtomicInteger<T>)
EMU_ATOMIC(atomicXor, old ^ v, emu::kAtomicInteger<T>)
EMU_ATOMIC(atomicInc, old >= v ? 0 : old + 1, emu::kOneOf<T, unsigned>)
EMU_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1, emu::kOneOf<T, unsigned>)
#undef EMU_ATOMIC
template <class T>
T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> v) {
  static_assert(emu::kAtomicInteger<T> || emu::kOneOf<T, unsigned short>, "atomicCAS has no form for this type");
  return emu::atomic_update(p, [=](T old) { return old == expected ? T(v) : old; });
}

inline void __threadfence() { emu::thread_fence(); }
inline void __threadfence_block() { emu::thread_fence(); }
inline void __threadfence_system() { emu::thread_fence(); }
inline void __nanosleep(unsigned, EMU_HERE) { emu::poll("__nanosleep", emu_where); }
