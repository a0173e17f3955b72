// Shared memory, and cp.async, which copies to it.
//
// Every array is a heap allocation of its exact size, so that ASan guards its ends, filled with NaN for each block.
// What cp.async copies arrives at the wait and not before; until then the destination holds NaN.
#pragma once
#include <cstdlib>
#include <cstring>
#include <utility>

#include "machine.hpp"

namespace emu {

constexpr size_t kMaxSharedBytes = 227 << 10;        // of a block on sm_90
constexpr size_t kMaxStaticSharedBytes = 48 << 10;  // in arrays whose size the compiler knows

inline Region new_region(size_t bytes) {
  void* data = nullptr;
  if (posix_memalign(&data, 1024, bytes)) throw std::bad_alloc();
  std::memset(data, 0xff, bytes);  // NaN in every floating-point format
  return {static_cast<unsigned char*>(data), bytes};
}
inline void begin_shared_memory() { machine.smem = new_region(machine.smem_bytes).data; }
inline void end_shared_memory() {
  std::free(machine.smem);
  for (auto& array : machine.arrays) std::free(array.second.data);
  machine.arrays.clear();
}

EMU_FAST inline unsigned char* dynamic_smem() { return machine.smem; }

// The array that belongs to this place in this function (a template instance has its own).
template <class T>
T* static_smem(size_t count, const char* function, Where where) {
  Internal guard;
  Machine& m = machine;
  const auto found = m.arrays.find({function, where.line});
  if (found != m.arrays.end()) return reinterpret_cast<T*>(found->second.data);
  size_t bytes = count * sizeof(T);
  for (auto& array : m.arrays) bytes += array.second.bytes;
  if (bytes > kMaxStaticSharedBytes || bytes + m.smem_bytes > kMaxSharedBytes)
    fail("shared arrays of " + std::to_string(bytes) + " bytes are too large", where);
  return reinterpret_cast<T*>((m.arrays[{function, where.line}] = new_region(count * sizeof(T))).data);
}

inline bool within(const Region& region, const void* p, size_t bytes) {
  auto* c = static_cast<const unsigned char*>(p);
  return c >= region.data && c + bytes <= region.data + region.bytes;
}
EMU_FAST inline bool in_smem(const void* p, size_t bytes) {
  if (within({machine.smem, machine.smem_bytes}, p, bytes)) return true;
  for (auto& array : machine.arrays)
    if (within(array.second, p, bytes)) return true;
  return false;
}

// What the copy engine writes: `src`, or NaN while a copy is in flight. Plain stores of the calling thread, because
// TSan does not report the library's memset and memcpy on a fiber.
inline void put(void* dst, const unsigned char* src, int bytes) {
  for (int i = 0; i < bytes; i += 4) {
    uint32_t word = ~0u;
    if (src) std::memcpy(&word, src + i, 4);
    *reinterpret_cast<volatile uint32_t*>(static_cast<char*>(dst) + i) = word;
  }
}
// The same towards the emulator: plain loads.
inline void get(unsigned char* dst, const void* src, int bytes) {
  for (int i = 0; i < bytes; i += 4) {
    const uint32_t word = *reinterpret_cast<const volatile uint32_t*>(static_cast<const char*>(src) + i);
    std::memcpy(dst + i, &word, 4);
  }
}

// cp.async of 4, 8 or 16 bytes, of which `valid` are read and the others become zero (PTX ISA, cp.async).
inline void cp_async(void* dst, const void* src, int bytes, int valid, Where where) {
  if (!in_smem(dst, size_t(bytes))) fail("cp.async: destination outside shared memory", where);
  if (uintptr_t(dst) % unsigned(bytes) || uintptr_t(src) % unsigned(bytes)) fail("cp.async: misaligned", where);
  Copy c{dst, {}, bytes};
  get(c.data, src, valid);  // now, so that a bad address is reported where it was issued
  put(dst, nullptr, bytes);
  Internal guard;
  Thread& t = *machine.cur;
  const auto overlaps = [&](const Copy& x) {
    const auto *a = static_cast<char*>(x.dst), *b = static_cast<char*>(dst);
    return a < b + bytes && b < a + x.bytes;
  };
  for (auto& group : t.committed)
    for (auto& x : group)
      if (overlaps(x)) fail("cp.async: an earlier group still writes this address", where);
  for (auto& x : t.open)
    if (overlaps(x)) fail("cp.async: another copy of this group writes this address", where);
  t.open.push_back(c);
  t.where = where;
}
inline void cp_async_commit() {
  Internal guard;
  machine.cur->committed.push_back(std::exchange(machine.cur->open, {}));
}
// Waits until at most `pending` of the thread's committed groups are in flight.
inline void cp_async_wait(size_t pending) {
  std::vector<Copy> done;
  {
    Internal guard;
    auto& q = machine.cur->committed;
    for (; q.size() > pending; q.pop_front()) done.insert(done.end(), q.front().begin(), q.front().end());
  }
  for (auto& c : done) put(c.dst, c.data, c.bytes);
}

}  // namespace emu
