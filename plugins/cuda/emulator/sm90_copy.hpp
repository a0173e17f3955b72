// Bulk copies of sm_90, which the copy engine makes: plain ones, and boxes of a tensor that a tensor map
// describes (PTX ISA, "Tensor copy", "Tiled mode").
#pragma once
#include <algorithm>
#include <deque>
#include <initializer_list>

#include "sm90_barriers.hpp"

namespace emu {

// What cuTensorMapEncodeTiled puts into a CUtensorMap.
struct TensorMap {
  unsigned char* base;
  int rank, element_bytes;
  uint64_t sizes[5], strides[5];  // strides in bytes, of axes 1 and up at [1] and up
  uint32_t box[5];
  int swizzle;  // span in bytes: 0, 32, 64 or 128
};

}  // namespace emu

namespace emu::sm90 {

// Calls visit(byte of the tensor or null when it is outside, address in shared memory) for each element of a
// box.
template <class F>
void visit_box(const TensorMap& map, const int* at, uint32_t address, F visit) {
  uint32_t index[5] = {}, offset = 0;
  for (;;) {
    bool inside = true;
    unsigned char* element = map.base;
    for (int d = 0; d < map.rank; d++) {
      const int64_t x = int64_t(at[d]) + index[d];
      inside = inside && x >= 0 && uint64_t(x) < map.sizes[d];
      if (inside) element += uint64_t(x) * (d == 0 ? uint64_t(map.element_bytes) : map.strides[d]);
    }
    visit(inside ? element : nullptr, swizzled(address + offset, map.swizzle));
    offset += uint32_t(map.element_bytes);
    int d = 0;
    while (d < map.rank && ++index[d] == map.box[d]) index[d++] = 0;
    if (d == map.rank) return;
  }
}
inline uint32_t box_bytes(const TensorMap& map) {
  auto bytes = uint32_t(map.element_bytes);
  for (int d = 0; d < map.rank; d++) bytes *= map.box[d];
  return bytes;
}
inline uint32_t check_box(const TensorMap& map, int rank, const void* shared, const char* op, Where where) {
  if (map.rank != rank) fail(std::string(op) + ": another rank than the tensor map's", where);
  const uint32_t address = shared_address(shared, where);
  if (address % 128) fail(std::string(op) + ": shared memory not aligned to 128 bytes", where);
  shared_offset(address, box_bytes(map), op, where);
  return address;
}

// cp.async.bulk.tensor.shared::cluster.global.mbarrier. Elements outside the tensor are zero; their bytes
// count too.
inline void tensor_load(void* dst, const TensorMap& map, uint64_t* bar, std::initializer_list<int> at,
                        Where where) {
  constexpr const char* op = "cp.async.bulk.tensor";
  const uint32_t first = check_box(map, int(at.size()), dst, op, where), bytes = box_bytes(map);
  std::vector<unsigned char> data(bytes);
  visit_box(map, at.begin(), first, [&](const unsigned char* element, uint32_t address) {
    for (int i = 0; i < map.element_bytes; i++)
      data[address - first + unsigned(i)] = element ? element[i] : 0;
  });
  std::vector<Piece> pieces(bytes / 16);
  for (size_t i = 0; i < pieces.size(); i++) {
    pieces[i].offset = first - kSharedBase + 16 * i;
    std::memcpy(pieces[i].data, &data[16 * i], 16);
    check_overwritten(pieces[i].offset, 16, op, where);
    async_write(pieces[i].offset, nullptr, 16);
  }
  mbarrier_expects(bar, pieces, op, where);
}

// cp.async.bulk.shared::cluster.global.mbarrier
inline void bulk_load(void* dst, const void* src, uint32_t bytes, uint64_t* bar, Where where) {
  constexpr const char* op = "cp.async.bulk";
  const size_t first = shared_offset(shared_address(dst, where), bytes, op, where);
  if (bytes % 16 || first % 16 || uintptr_t(src) % 16)
    fail("cp.async.bulk: not a multiple of 16 bytes", where);
  std::vector<Piece> pieces(bytes / 16);
  for (size_t i = 0; i < pieces.size(); i++) {
    pieces[i].offset = first + 16 * i;
    get(pieces[i].data, static_cast<const char*>(src) + 16 * i, 16);
    check_overwritten(pieces[i].offset, 16, op, where);
    async_write(pieces[i].offset, nullptr, 16);
  }
  mbarrier_expects(bar, pieces, op, where);
}

// Stores from shared memory, which a thread commits in groups and waits for; they read when it waits.
struct Store {
  TensorMap map;
  int at[5];
  uint32_t address;
  Where where;
};
struct StoreGroups {
  std::vector<Store> open;
  std::deque<std::vector<Store>> committed;
};
inline std::map<int, StoreGroups> stores;  // by thread of the running block

// cp.async.bulk.tensor.global.shared::cta.bulk_group. What lies outside the tensor is not written.
inline void tensor_store(const TensorMap& map, std::initializer_list<int> at, const void* src, Where where) {
  static const bool once = at_block_end([] {
    for (auto& thread : stores)
      if (!thread.second.open.empty() || !thread.second.committed.empty())
        fail_at_end("a bulk store was not waited for before its block ended");
    stores.clear();
  });
  (void)once;
  Store store = {map, {}, check_box(map, int(at.size()), src, "cp.async.bulk.tensor", where), where};
  std::copy(at.begin(), at.end(), store.at);
  Internal guard;
  stores[machine.cur->id].open.push_back(store);
}
inline void bulk_commit() {
  Internal guard;
  StoreGroups& groups = stores[machine.cur->id];
  groups.committed.push_back(std::exchange(groups.open, {}));
}
inline void bulk_wait(size_t pending) {
  std::vector<Store> done;
  {
    Internal guard;
    auto& q = stores[machine.cur->id].committed;
    for (; q.size() > pending; q.pop_front()) done.insert(done.end(), q.front().begin(), q.front().end());
  }
  for (const Store& store : done)
    visit_box(store.map, store.at, store.address, [&](unsigned char* element, uint32_t address) {
      const size_t word = (address - kSharedBase) / 4 * 4;
      unsigned char data[4];
      async_read(data, word, 4, "cp.async.bulk.tensor", store.where);
      for (int i = 0; element && i < store.map.element_bytes; i++)
        element[i] = data[address - kSharedBase - word + unsigned(i)];
    });
}

}  // namespace emu::sm90
