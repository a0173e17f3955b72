// Operations in which lanes of a warp meet: shuffles, votes, matches, reductions, __syncwarp.
//
// Each waits for every lane of its mask; lanes that wait in different operations are reported, and lanes that never
// come end in a deadlock. Stricter than the chips: a lane that has ended is missed too. None but __syncwarp orders
// memory.
#pragma once
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "machine.hpp"

namespace emu {

// All lanes of `mask` meet; the last one runs exec(arguments of all lanes, mask).
template <class A>
void collective(const char* op, uint32_t mask, A& args, void (*exec)(A* const*, uint32_t), Where where) {
  Internal guard;
  Thread& t = *machine.cur;
  Warp& w = machine.warps[size_t(t.id / 32)];
  const uint32_t me = 1u << t.id % 32;
  if (!(mask & me)) fail(std::string(op) + ": the calling lane is not in its mask", where);
  auto g = std::find_if(w.groups.begin(), w.groups.end(), [&](Group& x) { return x.mask & mask; });
  if (g == w.groups.end()) g = w.groups.insert(g, Group{op, mask, 0, {}});
  if (g->mask != mask || (g->op != op && std::strcmp(g->op, op) != 0))
    fail(std::string(op) + ": other lanes of the warp wait in " + g->op + " or use another mask", where);
  g->arrived |= me;
  g->args[t.id % 32] = &args;
  if (g->arrived != mask) {
    t.state = Thread::AtWarp, t.op = op, t.where = where;
    suspend();
    t.state = Thread::Ready;
  } else {
    A* all[32];
    for (int i = 0; i < 32; i++) all[i] = static_cast<A*>(g->args[i]);
    w.groups.erase(g);
    w.ready |= mask & ~me;
    exec(all, mask);
  }
  t.polls = 0;
}

EMU_FAST inline void syncwarp(uint32_t mask, Where where) {
  Thread& t = *machine.cur;
  char* token = &machine.warps[size_t(t.id / 32)].token[t.warp_syncs++ & 1];
  int none = 0;
  release(token);
  collective<int>("__syncwarp", mask, none, [](int* const*, uint32_t) {}, where);
  acquire(token);
}

// Lane `src` of the warp gives its value. PTX ISA, shfl.sync: reading a lane outside the mask is undefined.
template <class T>
T shuffle(const char* op, uint32_t mask, T v, int src, Where where) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 2));
  struct A {
    T v;
    int src;
    T out;
    bool bad;
  } a{v, src, v, false};
  collective<A>(op, mask, a, [](A* const* all, uint32_t mask) EMU_FAST {
    for (int i = 0; i < 32; i++)
      if (mask >> i & 1) {
        all[i]->bad = !(mask >> all[i]->src & 1);
        if (!all[i]->bad) all[i]->out = all[all[i]->src]->v;
      }
  }, where);
  if (a.bad) fail(std::string(op) + ": reads a lane outside the mask", where);
  return a.out;
}

// Every lane of the mask gets what `combine` makes of all values, in order of the lanes.
template <class T, class R>
R all_lanes(const char* op, uint32_t mask, T v, R (*combine)(const T* values, uint32_t mask), Where where) {
  struct A {
    T v;
    R out;
    R (*combine)(const T*, uint32_t);
  } a{v, {}, combine};
  collective<A>(op, mask, a, [](A* const* all, uint32_t mask) {
    T values[32] = {};
    for (int i = 0; i < 32; i++)
      if (mask >> i & 1) values[i] = all[i]->v;
    const R result = all[__builtin_ctz(mask)]->combine(values, mask);
    for (int i = 0; i < 32; i++)
      if (mask >> i & 1) all[i]->out = result;
  }, where);
  return a.out;
}
// Folds the values of the mask's lanes.
template <class F, class T>
T fold(const T* values, uint32_t mask) {
  T result = values[__builtin_ctz(mask)];
  for (int i = __builtin_ctz(mask) + 1; i < 32; i++)
    if (mask >> i & 1) result = F{}(result, values[i]);
  return result;
}
struct Smaller {
  template <class T> T operator()(T a, T b) const { return std::min(a, b); }
};
struct Larger {
  template <class T> T operator()(T a, T b) const { return std::max(a, b); }
};

}  // namespace emu

inline void __syncwarp(uint32_t mask = ~0u, EMU_HERE) { emu::syncwarp(mask, emu_where); }

// In pieces of `width` lanes; a source beyond the piece leaves a lane its own value (PTX ISA, shfl.sync, where
// `width` is turned into the clamp and segment mask of operand c).
template <class T>
T __shfl_sync(uint32_t mask, T v, int src, int width = 32, EMU_HERE) {
  const int base = emu::lane_id() & ~(width - 1);
  return emu::shuffle("__shfl_sync", mask, v, base | (src & (width - 1)), emu_where);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T v, int x, int width = 32, EMU_HERE) {
  const int l = emu::lane_id(), j = l ^ x;
  return emu::shuffle("__shfl_xor_sync", mask, v, j > (l | (width - 1)) ? l : j, emu_where);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T v, unsigned n, int width = 32, EMU_HERE) {
  const int l = emu::lane_id(), j = l + int(n);
  return emu::shuffle("__shfl_down_sync", mask, v, j > (l | (width - 1)) ? l : j, emu_where);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T v, unsigned n, int width = 32, EMU_HERE) {
  const int l = emu::lane_id(), j = l - int(n);
  return emu::shuffle("__shfl_up_sync", mask, v, j < (l & ~(width - 1)) ? l : j, emu_where);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate, EMU_HERE) {
  return emu::all_lanes<int, uint32_t>("__ballot_sync", mask, predicate != 0, [](const int* p, uint32_t) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; i++) bits |= uint32_t(p[i]) << i;
    return bits;
  }, emu_where);
}
inline int __any_sync(uint32_t mask, int p, EMU_HERE) { return __ballot_sync(mask, p, emu_where) != 0; }
inline int __all_sync(uint32_t mask, int p, EMU_HERE) { return __ballot_sync(mask, p, emu_where) == mask; }
// CUDA promises no more than that the caller is in the set; the emulator returns exactly that.
EMU_FAST inline uint32_t __activemask() { return 1u << emu::lane_id(); }

// Lanes of the mask that gave the same bits.
template <class T>
uint32_t __match_any_sync(uint32_t mask, T v, EMU_HERE) {
  struct A {
    T v;
    uint32_t out;
  } a{v, 0};
  emu::collective<A>("__match_any_sync", mask, a, [](A* const* all, uint32_t mask) {
    for (int i = 0; i < 32; i++)
      for (int j = 0; j < 32; j++)
        if ((mask >> i & 1) && (mask >> j & 1) && std::memcmp(&all[i]->v, &all[j]->v, sizeof(T)) == 0)
          all[i]->out |= 1u << j;
  }, emu_where);
  return a.out;
}
template <class T>
uint32_t __match_all_sync(uint32_t mask, T v, int* same, EMU_HERE) {
  const uint32_t equal = __match_any_sync(mask, v, emu_where);
  *same = equal == mask;
  return *same ? mask : 0;
}

// redux.sync (sm_80).
template <class T>
T __reduce_add_sync(uint32_t mask, T v, EMU_HERE) {
  static_assert(sizeof(T) == 4 && std::is_integral_v<T>);
  return T(emu::all_lanes<uint32_t, uint32_t>("__reduce_add_sync", mask, uint32_t(v), emu::fold<std::plus<uint32_t>>,
                                              emu_where));
}
#define EMU_REDUCE(name, F)                                                       \
  template <class T>                                                              \
  T name(uint32_t mask, T v, EMU_HERE) {                                          \
    static_assert(sizeof(T) == 4 && std::is_integral_v<T>);                       \
    return emu::all_lanes<T, T>(#name, mask, v, emu::fold<F, T>, emu_where);      \
  }
EMU_REDUCE(__reduce_min_sync, emu::Smaller)
EMU_REDUCE(__reduce_max_sync, emu::Larger)
EMU_REDUCE(__reduce_and_sync, std::bit_and<T>)
EMU_REDUCE(__reduce_or_sync, std::bit_or<T>)
EMU_REDUCE(__reduce_xor_sync, std::bit_xor<T>)
#undef EMU_REDUCE
