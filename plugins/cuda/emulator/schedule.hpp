// Launches: blocks one after another in a shuffled order, the threads of a block in an order drawn from the seed, so
// that a warp may run far ahead of the others. A kernel whose blocks wait for one another never ends here.
#pragma once
#include <numeric>
#include <type_traits>

#include "machine.hpp"
#include "shared_memory.hpp"
#include "slipway/errors.hpp"

namespace emu {

EMU_FAST inline void end_thread() {
  Internal guard;
  Thread& t = *machine.cur;
  if (!t.open.empty() || !t.committed.empty()) fail("cp.async not waited for before the thread ends", t.where);
  release(&machine.end_token[machine.launches & 1]);
  t.state = Thread::Done;
  machine.alive--;
}
EMU_FAST inline void fiber_entry() {
  arrived(machine.cur->ctx, machine.main);
  acquire(&machine.begin_token);
  machine.body();
  end_thread();
  jump(machine.cur->ctx, machine.main, true);
}

// Blocks that share strands are ordered for TSan, which finds no race between them. So neighbours in the (shuffled)
// order of blocks have different ones.
#ifdef __SANITIZE_THREAD__
constexpr unsigned kStrandsOfThread = 2;
#else
constexpr unsigned kStrandsOfThread = 1;
#endif

inline void start(Thread& t, int id) {
  Machine& m = machine;
  const size_t strand = kStrandsOfThread * size_t(id) + m.blocks_run % kStrandsOfThread;
  while (m.strands.size() <= strand) m.strands.push_back(new_strand());
  t = Thread{};
  t.id = id;
  t.tid = {id % m.block.x, id / m.block.x % m.block.y, id / m.block.x / m.block.y};
  prepare(t.ctx, m.strands[strand], fiber_entry);
  m.warps[size_t(id / 32)].ready |= 1u << id % 32;
}

// The next thread to run, or null when none can.
inline Thread* choose(unsigned& w) {
  Machine& m = machine;
  const auto n_warps = unsigned(m.warps.size());
  if (!m.warps[w].ready || m.random() % m.preempt == 0) {
    unsigned k = 0, first = m.random() % n_warps;
    while (k < n_warps && !m.warps[(first + k) % n_warps].ready) k++;
    if (k == n_warps) return nullptr;
    w = (first + k) % n_warps;
  }
  const uint32_t ready = m.warps[w].ready, turn = m.random() % 32;
  const uint32_t rotated = ready >> turn | ready << ((32 - turn) & 31);
  const unsigned lane = (unsigned(__builtin_ctz(rotated)) + turn) % 32;
  m.warps[w].ready &= ~(1u << lane);
  return &m.threads[w * 32 + lane];
}

inline void run_block() {
  Machine& m = machine;
  begin_shared_memory();
  m.alive = m.n_threads, m.arrived = 0, m.votes = 0;
  m.updated.clear();
  m.warps = std::vector<Warp>(size_t(m.n_threads + 31) / 32);
  m.barrier_token = std::make_unique<char[]>(2);
  m.threads.resize(size_t(m.n_threads));
  for (int i = 0; i < m.n_threads; i++) start(m.threads[size_t(i)], i);
  unsigned w = m.random() % unsigned(m.warps.size());
  while (m.alive > 0 && m.fault.empty()) {
    m.cur = choose(w);
    if (!m.cur) m.fault = deadlock();
    else jump(m.main, m.cur->ctx);
  }
#ifdef __SANITIZE_THREAD__
  if (!m.fault.empty()) {  // TSan cannot order the clean-up after threads that were left suspended
    std::fprintf(stderr, "FAIL emulator: %s\n", m.fault.c_str());
    std::_Exit(1);
  }
#endif
  for (auto& end : m.at_block_end) end();
  end_shared_memory();
  m.blocks_run++;
  if (m.fault.empty()) return;
  for (Strand strand : m.strands) clean(strand);
  throw Fault(std::exchange(m.fault, {}));
}

// What cudaLaunchKernel refuses on every chip that is supported (CUDA C++ Programming Guide, compute capabilities).
inline void check_launch(dim3 grid, dim3 block, size_t smem_bytes) {
  const auto text = [](dim3 d) {
    return std::to_string(d.x) + "x" + std::to_string(d.y) + "x" + std::to_string(d.z);
  };
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    throw slipway::CudaError("launch: invalid configuration argument: grid " + text(grid) + ", block " + text(block));
  if (smem_bytes > kMaxSharedBytes)
    throw slipway::CudaError("launch: invalid argument: " + std::to_string(smem_bytes) +
                             " bytes of shared memory; a block has at most " + std::to_string(kMaxSharedBytes));
}

// Runs kernel(args...) over the grid. Throws Fault, or CudaError for what CUDA would not launch. overlapped: for TSan
// its threads begin when the launch before it did, and are ordered after its end by previous_kernel_wait() alone.
template <class... P, class... A>
void launch(bool overlapped, void (*kernel)(P...), dim3 grid, dim3 block, size_t smem_bytes, A... args) {
  check_launch(grid, block, smem_bytes);
  Internal guard;
  Machine& m = machine;
  m.grid = grid, m.block = block, m.smem_bytes = smem_bytes;
  m.n_threads = int(block.x * block.y * block.z);
  m.state = m.seed * 0x9e3779b97f4a7c15ull | 1;
  m.body = [=] { kernel(args...); };
#ifdef __SANITIZE_THREAD__
  m.main.tsan = __tsan_get_current_fiber();
#endif
  m.launches++;
  if (!overlapped) release(&m.begin_token);
  std::vector<unsigned> order(size_t(grid.x) * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0u);
  for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[m.random() % i]);
  for (unsigned b : order) {
    m.bid = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    run_block();
  }
  acquire(&m.end_token[m.launches & 1]);
}

// griddepcontrol.wait: what the launch before has written is there.
inline void previous_kernel_wait() { acquire(&machine.end_token[~machine.launches & 1]); }

}  // namespace emu
