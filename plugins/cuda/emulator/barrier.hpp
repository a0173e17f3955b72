// __syncthreads and its voting forms.
//
// Stricter than the chips: a thread that has ended does not count as arrived, and all threads must be at the same
// __syncthreads of the source, as the CUDA C++ Programming Guide asks.
#pragma once
#include "machine.hpp"

namespace emu {

// All threads of the block meet. Returns how many gave a vote.
EMU_FAST inline int syncthreads(const char* op, bool vote, Where where) {
  Machine& m = machine;
  Thread& t = *m.cur;
  char* token = &m.barrier_token[t.block_syncs++ & 1];
  if (m.arrived == 0) m.barrier = where, m.votes = 0;
  if (m.barrier.line != where.line || (m.barrier.file != where.file && std::strcmp(m.barrier.file, where.file) != 0))
    fail(std::string(op) + ": other threads of the block wait in one at " + m.barrier.file + ":" +
             std::to_string(m.barrier.line),
         where);
  m.votes += vote;
  release(token);
  if (++m.arrived < m.n_threads) {
    t.state = Thread::AtBlock, t.op = op, t.where = where;
    suspend();
    t.state = Thread::Ready;
  } else {
    m.arrived = 0, t.votes_seen = m.votes;
    for (Thread& u : m.threads) {
      u.votes_seen = m.votes;
      if (u.id != t.id) m.warps[size_t(u.id / 32)].ready |= 1u << u.id % 32;
    }
  }
  t.polls = 0;
  acquire(token);
  return t.votes_seen;
}

}  // namespace emu

inline void __syncthreads(EMU_HERE) { emu::syncthreads("__syncthreads", false, emu_where); }
inline int __syncthreads_count(int vote, EMU_HERE) {
  return emu::syncthreads("__syncthreads_count", vote != 0, emu_where);
}
inline int __syncthreads_or(int vote, EMU_HERE) {
  return emu::syncthreads("__syncthreads_or", vote != 0, emu_where) > 0;
}
inline int __syncthreads_and(int vote, EMU_HERE) {
  return emu::syncthreads("__syncthreads_and", vote != 0, emu_where) == emu::machine.n_threads;
}
