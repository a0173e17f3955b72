// Shared memory as the asynchronous proxy of sm_90 sees it: TMA and wgmma read it through a view of their
// own, and what ordinary stores wrote becomes visible in it by fence.proxy.async (PTX ISA, "Proxies").
//
// The emulator keeps that view as a second copy of dynamic shared memory: TMA writes both, a fence copies the
// first into the second, and a read by TMA or wgmma that finds them different is reported. A fence publishes
// what all threads wrote so far, not the calling thread's stores alone: that one thread fences for another is
// found only when the other's stores come later.
#pragma once
#include <cstring>
#include <vector>

#include "machine.hpp"
#include "shared_memory.hpp"

namespace emu::sm90 {

// Calls `reset` at the end of every block from now on.
inline bool at_block_end(std::function<void()> reset) {
  machine.at_block_end.push_back(std::move(reset));
  return true;
}
// Reports a fault that is seen when a block has ended.
inline void fail_at_end(const std::string& what) {
  if (machine.fault.empty()) machine.fault = what + " (seed " + std::to_string(machine.seed) + ")";
}
inline void wake(int thread) { machine.warps[size_t(thread / 32)].ready |= 1u << thread % 32; }
inline void wake_all(std::vector<int>& threads) {
  for (int thread : threads) wake(thread);
  threads.clear();
}
// The running thread sleeps until one of these calls wakes it.
inline void sleep(std::vector<int>& threads, const char* op, Where where) {
  Thread& t = *machine.cur;
  threads.push_back(t.id);
  t.state = Thread::AtBlock, t.op = op, t.where = where;
  suspend();
  t.state = Thread::Ready;
}

// Addresses in the window of shared memory; its first kilobyte is the system's.
constexpr uint32_t kSharedBase = 1024;
inline uint32_t shared_address(const void* p, Where where) {
  const auto* c = static_cast<const unsigned char*>(p);
  if (c < machine.smem || c > machine.smem + machine.smem_bytes)
    fail("not an address of dynamic shared memory", where);
  return kSharedBase + uint32_t(c - machine.smem);
}
// `bytes` from an address on, or a fault.
inline size_t shared_offset(uint32_t address, size_t bytes, const char* op, Where where) {
  if (address < kSharedBase || address - kSharedBase + bytes > machine.smem_bytes)
    fail(std::string(op) + ": outside dynamic shared memory", where);
  return address - kSharedBase;
}

inline std::vector<unsigned char> async_view;
inline unsigned char* view_of_block() {
  static const bool once = at_block_end([] { async_view.clear(); });
  (void)once;
  if (async_view.empty()) async_view.assign(machine.smem_bytes, 0xff);
  return async_view.data();
}

// fence.proxy.async.shared::cta
inline void fence_proxy_async() {
  Internal guard;
  std::memcpy(view_of_block(), machine.smem, machine.smem_bytes);
}

// What TMA writes: both copies. `data` null: not there yet, NaN.
inline void async_write(size_t offset, const unsigned char* data, int bytes) {
  put(machine.smem + offset, data, bytes);
  Internal guard;
  if (data)
    std::memcpy(view_of_block() + offset, data, size_t(bytes));
  else
    std::memset(view_of_block() + offset, 0xff, size_t(bytes));
}
// TMA is about to write: ordinary stores there must have been fenced too, or the two are not ordered.
inline void check_overwritten(size_t offset, int bytes, const char* op, Where where) {
  Internal guard;
  if (std::memcmp(machine.smem + offset, view_of_block() + offset, size_t(bytes)) != 0)
    fail(std::string(op) + ": overwrites what ordinary stores wrote without fence.proxy.async after them",
         where);
}
// What TMA and wgmma read.
inline void async_read(unsigned char* to, size_t offset, int bytes, const char* op, Where where) {
  get(to, machine.smem + offset, bytes);
  Internal guard;
  if (std::memcmp(to, view_of_block() + offset, size_t(bytes)) != 0)
    fail(std::string(op) + ": reads what ordinary stores wrote without fence.proxy.async after them", where);
}

// The swizzle modes of TMA and wgmma permute 16-byte chunks: bits 4 to 6 of the address are XORed with bits 7
// to 9 (128 bytes), or 4 to 5 with 7 to 8 (64), or bit 4 with bit 7 (32) (PTX ISA, "Swizzling modes").
constexpr uint32_t swizzled(uint32_t address, int span) {
  return span == 0 ? address : address ^ (address >> 3 & uint32_t(span - 16));
}

}  // namespace emu::sm90
