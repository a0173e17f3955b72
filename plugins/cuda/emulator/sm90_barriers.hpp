// Barriers of sm_90: mbarrier with transaction counts, named barriers, and setmaxnreg (PTX ISA, "Parallel
// Synchronization and Communication Instructions").
//
// The word of an mbarrier in shared memory is a mark alone; its state lies outside, so that one which was
// never initialised or was overwritten is reported. Copies that a barrier waits for arrive in 16-byte pieces
// in any order, while somebody waits and not before.
#pragma once
#include <map>

#include "sm90_memory.hpp"

namespace emu::sm90 {

struct Piece {  // 16 bytes on their way
  size_t offset;
  unsigned char data[16];
};
struct Mbarrier {
  uint32_t expected, pending;  // arrivals of a phase, and those that are missing in this one
  int64_t bytes = 0;           // announced in this phase and not there
  uint32_t phase = 0;
  bool published = false;  // to the asynchronous proxy
  std::vector<Piece> pieces;
  std::vector<int> waiting;
  char token[2];  // TSan: the phases
  char copies;    // TSan: what was before a copy was issued
};
inline std::map<const uint64_t*, Mbarrier> mbarriers;  // of the running block
constexpr uint64_t kMbarrierMark = 0x6d62617272696572, kMaxTransactionBytes = (1 << 20) - 1;

inline void mbarrier_init(uint64_t* bar, uint32_t count, Where where) {
  static const bool once = at_block_end([] {
    for (auto& b : mbarriers)
      if (!b.second.pieces.empty()) fail_at_end("a bulk copy was in flight when the block ended");
    mbarriers.clear();
  });
  (void)once;
  if (!in_smem(bar, 8) || uintptr_t(bar) % 8)
    fail("mbarrier.init: not an aligned word of shared memory", where);
  if (count == 0 || count > 0xfffff) fail("mbarrier.init: a count is 1 to 2^20 - 1", where);
  *bar = kMbarrierMark;
  Internal guard;
  Mbarrier fresh = {};
  fresh.expected = fresh.pending = count;
  mbarriers[bar] = fresh;
}
inline Mbarrier& mbarrier_at(const uint64_t* bar, Where where) {
  const auto it = mbarriers.find(bar);
  if (it == mbarriers.end() || *bar != kMbarrierMark)
    fail("mbarrier: not initialised, or overwritten", where);
  return it->second;
}
// fence.mbarrier_init: the copy engine sees the barriers that are initialised.
inline void publish_mbarriers() {
  Internal guard;
  for (auto& b : mbarriers) b.second.published = true;
}
inline void mbarrier_step(Mbarrier& b) {
  if (b.pending != 0 || b.bytes != 0) return;
  b.phase++, b.pending = b.expected;
  wake_all(b.waiting);
}
// Arrives once, and announces `bytes` that copies will bring.
inline void mbarrier_arrive(uint64_t* bar, int64_t bytes, Where where) {
  Internal guard;
  Mbarrier& b = mbarrier_at(bar, where);
  if (b.pending == 0) fail("mbarrier.arrive: more arrivals than the barrier counts", where);
  release(&b.token[b.phase & 1]);
  b.bytes += bytes;
  if (b.bytes > int64_t(kMaxTransactionBytes)) fail("mbarrier: a phase has at most 2^20 - 1 bytes", where);
  b.pending--;
  mbarrier_step(b);
}
// A copy was issued whose bytes this barrier counts.
inline void mbarrier_expects(uint64_t* bar, const std::vector<Piece>& pieces, const char* op, Where where) {
  Internal guard;
  Mbarrier& b = mbarrier_at(bar, where);
  if (!b.published)
    fail(std::string(op) + ": the mbarrier was initialised without fence.mbarrier_init or fence.proxy.async",
         where);
  b.pieces.insert(b.pieces.end(), pieces.begin(), pieces.end());
  release(&b.copies);
  wake_all(b.waiting);  // they have something to bring in
}
// Brings in some pieces; the running thread makes the copy engine's stores.
inline void deliver(Mbarrier& b) {
  std::vector<Piece> some;
  {
    Internal guard;
    for (size_t n = machine.random() % b.pieces.size() + 1; n > 0; n--) {
      std::swap(b.pieces[machine.random() % b.pieces.size()], b.pieces.back());
      some.push_back(b.pieces.back());
      b.pieces.pop_back();
    }
  }
  acquire(&b.copies);
  for (const Piece& piece : some) async_write(piece.offset, piece.data, 16);
  Internal guard;
  release(&b.token[b.phase & 1]);
  b.bytes -= 16 * int64_t(some.size());
  mbarrier_step(b);
}
// Waits for the end of the phase of this parity (mbarrier.try_wait.parity until it is true).
inline void mbarrier_wait(const uint64_t* bar, uint32_t parity, Where where) {
  Mbarrier* b = nullptr;
  const auto missing = [&] {
    Internal guard;
    b = &mbarrier_at(bar, where);
    while ((b->phase & 1) == parity && b->pieces.empty()) sleep(b->waiting, "mbarrier wait", where);
    return (b->phase & 1) == parity;
  };
  while (missing()) {
    deliver(*b);
    Internal guard;
    yield();
  }
  acquire(&b->token[parity & 1]);
}

// ---- named barriers

struct NamedBarrier {
  int count = 0, arrived = 0;
  uint32_t phase = 0;
  std::vector<int> waiting;
  char token[2];  // TSan
};
inline std::map<int, NamedBarrier>
    named_barriers;  // of the running block; made anew, or TSan would order blocks

// bar.sync, or bar.arrive, of `count` threads in all (PTX ISA, bar). Barrier 0 is __syncthreads's.
inline void named_barrier(int id, int count, bool waits, Where where) {
  static const bool once = at_block_end([] {
    for (auto& b : named_barriers)
      if (b.second.arrived)
        fail_at_end("a named barrier was left with " + std::to_string(b.second.arrived) + " arrivals");
    named_barriers.clear();
  });
  (void)once;
  Internal guard;
  const char* op = waits ? "bar.sync" : "bar.arrive";
  if (id < 1 || id > 15) fail(std::string(op) + ": named barriers are 1 to 15", where);
  if (count % 32 || count < 32 || count > machine.n_threads)
    fail(std::string(op) + ": a count is a multiple of the warp size, at most the block's threads", where);
  NamedBarrier& b = named_barriers[id];
  if (b.arrived && b.count != count) fail(std::string(op) + ": other threads gave another count", where);
  b.count = count;
  char* token = &b.token[b.phase & 1];
  release(token);
  if (++b.arrived == count) {
    b.arrived = 0, b.phase++;
    wake_all(b.waiting);
  } else if (waits) {
    sleep(b.waiting, op, where);
  }
  if (waits) acquire(token);
}

// ---- registers of a warpgroup

struct RegisterCount {
  int threads = 0, registers = 0;
};
inline std::map<int, RegisterCount> register_counts;  // by warpgroup of the running block

// setmaxnreg: all warps of a warpgroup call it, once here; together they have 64 K registers.
inline void set_registers(int registers, Where where) {
  static const bool once = at_block_end([] {
    int all = 0;
    for (auto& group : register_counts) {
      if (group.second.threads != 128) fail_at_end("setmaxnreg: not all threads of a warpgroup called it");
      all += 128 * group.second.registers;
    }
    if (all > 65536)
      fail_at_end("setmaxnreg: " + std::to_string(all) + " registers; a multiprocessor has 65536");
    register_counts.clear();
  });
  (void)once;
  Internal guard;
  RegisterCount& group = register_counts[machine.cur->id / 128];
  if (registers % 8 || registers < 24 || registers > 256)
    fail("setmaxnreg: 24 to 256, a multiple of 8", where);
  if (group.threads && group.registers != registers) fail("setmaxnreg: warps of a warpgroup disagree", where);
  group.registers = registers, group.threads++;
}

}  // namespace emu::sm90
