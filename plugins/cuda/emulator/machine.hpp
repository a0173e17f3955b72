// The state of the emulated multiprocessor: the block that runs, its threads and warps, and how a fault ends it.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "context.hpp"

namespace emu {

// What a wrong kernel ends in; the message names the thread, the source line and the seed.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct Where {
  const char* file;
  int line;
};
#define EMU_HERE emu::Where emu_where = {__builtin_FILE(), __builtin_LINE()}

struct Copy {  // one cp.async in flight
  void* dst;
  unsigned char data[16];
  int bytes;
};
struct Group {  // lanes of one warp that have met in a warp operation
  const char* op;
  uint32_t mask, arrived;
  void* args[32];
};
struct Thread {
  Context ctx;
  uint3 tid;
  int id;
  enum { Ready, AtWarp, AtBlock, Done } state;
  const char* op;  // what it waits in, and where
  Where where;
  unsigned block_syncs, warp_syncs, polls;
  int votes_seen;  // of the last barrier
  std::vector<Copy> open;                   // cp.async issued since the last commit
  std::deque<std::vector<Copy>> committed;  // groups not waited for yet
  bool fenced;                              // has called __threadfence
};
struct Warp {
  uint32_t ready;
  std::vector<Group> groups;
  char token[2];  // addresses that stand for __syncwarp in TSan
};
struct Region {  // of shared memory
  unsigned char* data;
  size_t bytes;
};

struct Machine {
  uint64_t seed = 1, state = 1;
  unsigned preempt = 64;  // one in this many switches between threads also changes the warp
  dim3 grid, block;
  uint3 bid;
  int n_threads = 0, alive = 0, arrived = 0, votes = 0;
  Where barrier = {};  // where the threads at __syncthreads are
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Strand> strands;
  std::function<void()> body;
  Context main;
  Thread* cur = nullptr;
  unsigned char* smem = nullptr;  // dynamic shared memory
  size_t smem_bytes = 0;
  std::map<std::pair<const void*, int>, Region> arrays;  // shared arrays of the running block, by place in the source
  std::set<void*> updated;                               // addresses of the block's atomics
  std::vector<std::function<void()>> at_block_end;       // for state that units of the emulator keep of a block
  std::string fault;
  unsigned blocks_run = 0;
  unsigned launches = 0;
  // Addresses that stand in TSan for __syncthreads (two phases; made anew for each block, or they would order blocks),
  // for the begin of launches, and for the end of this one and of the one before.
  std::unique_ptr<char[]> barrier_token;
  char begin_token, end_token[2];
  uint32_t random() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return uint32_t(state >> 16);
  }
};
inline Machine machine;

inline void suspend() { jump(machine.cur->ctx, machine.main); }

// Ends the launch with a Fault. By value: an abandoned stack must own no heap.
[[noreturn]] inline void fail(std::string what, Where w) {
  Internal guard;
  Machine& m = machine;
  what += " (thread " + std::to_string(m.cur->id) + " of block " + std::to_string(m.bid.x) + "," +
          std::to_string(m.bid.y) + "," + std::to_string(m.bid.z) + ", " + w.file + ":" + std::to_string(w.line) +
          ", seed " + std::to_string(m.seed) + ")";
  m.fault = std::move(what);
  suspend();  // the scheduler throws the fault and never resumes this fiber
  std::abort();
}

// Lets other threads run; this one stays runnable.
inline void yield() {
  Thread& t = *machine.cur;
  machine.warps[t.id / 32].ready |= 1u << t.id % 32;
  suspend();
}

// One round of waiting for something that only another thread can do.
constexpr unsigned kMaxPolls = 20000;
inline void poll(const char* op, Where where) {
  Internal guard;
  Thread& t = *machine.cur;
  if (++t.polls > kMaxPolls) fail(std::string(op) + ": what it waits for never happens", where);
  t.op = op, t.where = where;
  yield();
}

// Where every thread of the block waits, runs of threads on one line.
inline std::string deadlock() {
  std::string s = "deadlock:";
  for (Thread& t : machine.threads) {
    auto same = [&](const Thread& u) {
      return u.state == t.state && (t.state == Thread::Done || (u.op == t.op && u.where.line == t.where.line));
    };
    if (t.id > 0 && same(machine.threads[t.id - 1])) continue;
    int last = t.id;
    while (last + 1 < machine.n_threads && same(machine.threads[last + 1])) last++;
    s += "\n  threads " + std::to_string(t.id) + "-" + std::to_string(last) + " ";
    s += t.state == Thread::Done ? std::string("have ended")
                                 : std::string("wait in ") + t.op + " at " + t.where.file + ":" +
                                       std::to_string(t.where.line);
  }
  return s + "\n  seed " + std::to_string(machine.seed);
}

// ---- what a kernel reads of it ------------------------------------------------------------------------
// Functions and not variables: TSan must not see the scheduler write what a thread reads.
__attribute__((noinline)) EMU_FAST inline uint3 thread_idx() { return machine.cur->tid; }
__attribute__((noinline)) EMU_FAST inline uint3 block_idx() { return machine.bid; }
EMU_FAST inline dim3 block_dim() { return machine.block; }
EMU_FAST inline dim3 grid_dim() { return machine.grid; }
EMU_FAST inline int lane_id() { return machine.cur->id % 32; }

}  // namespace emu

#define threadIdx (emu::thread_idx())
#define blockIdx (emu::block_idx())
#define blockDim (emu::block_dim())
#define gridDim (emu::grid_dim())
#define warpSize 32
