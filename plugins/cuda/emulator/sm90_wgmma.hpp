// wgmma: products of a warpgroup, asynchronous (PTX ISA, "Asynchronous Warpgroup Level Matrix
// Multiply-Accumulate").
//
// A product is computed from shared memory at the first wait that covers it, when all 128 threads have issued
// it; until then the accumulators hold a NaN, which must still be there at the wait. So a kernel that reads
// them too early, writes them, or overwrites an operand before the wait gets wrong numbers or a report.
// Registers of A must live and keep their values until the wait too.
//
// Not stated: which products the hardware has finished before a wait (here none); the order of its sums (here
// k by k, in float32); that wgmma.fence is needed again after registers change between two products without a
// wait (it is demanded after each wait, and once before the first).
#pragma once
#include <deque>

#include "half.hpp"
#include "sm90_memory.hpp"
#include "tensor_core.hpp"

namespace emu::sm90 {

enum class Element { kHalf, kBFloat16, kE4M3 };
constexpr int element_bytes(Element e) { return e == Element::kE4M3 ? 1 : 2; }

EMU_FAST inline float element_value(Element type, const unsigned char* p) {
  uint16_t bits = *p;
  if (type != Element::kE4M3) std::memcpy(&bits, p, 2);
  return type == Element::kHalf       ? __half2float(emu::bit_cast<__half>(bits))
         : type == Element::kBFloat16 ? emu::bit_cast<float>(uint32_t(bits) << 16)
                                      : e4m3_value(uint8_t(bits));
}

// A matrix descriptor (PTX ISA, "Matrix Descriptor Format"): where the 16-byte chunks of an operand lie. Rows
// are M or N; K-major: a row's elements lie side by side, else those of a k do ("transposed", 16-bit elements
// only).
struct Operand {
  uint32_t start, leading, stride;
  int span;  // of the swizzle
  bool row_major_k;
  int bytes;  // of an element

  Operand(uint64_t descriptor, bool transposed, int bytes_, Where where)
      : start(uint32_t(descriptor & 0x3fff) << 4),
        leading(uint32_t(descriptor >> 16 & 0x3fff) << 4),
        stride(uint32_t(descriptor >> 32 & 0x3fff) << 4),
        span(descriptor >> 62 == 1   ? 128
             : descriptor >> 62 == 2 ? 64
             : descriptor >> 62 == 3 ? 32
                                     : 0),
        row_major_k(!transposed),
        bytes(bytes_) {
    if (descriptor & 0x3fffc000c000c000)
      fail("wgmma: reserved bits, or a base offset, in a descriptor", where);
    if (transposed && bytes != 2) fail("wgmma: only operands of 16 bits can be transposed", where);
  }
  // Canonical layouts, in chunks of 16 bytes: ((8, m), 2) : ((span, stride), 16 or leading) for K-major, and
  // ((span, m), (8, 2)) : ((16, leading), (span, stride)) for the others; without swizzle the latter's two
  // strides change places.
  uint32_t address(int row, int k) const {
    const int per_chunk = 16 / bytes, width = span ? span / 16 : 1;
    uint32_t at = start;
    if (row_major_k) {
      const uint32_t chunk = uint32_t(k / per_chunk);
      at += uint32_t(row % 8) * (span ? unsigned(span) : 16u) + uint32_t(row / 8) * stride +
            chunk * (span ? 16u : leading) + uint32_t(k % per_chunk * bytes);
    } else {
      const int chunk = row / per_chunk;
      at += uint32_t(chunk % width) * 16 + uint32_t(chunk / width) * (span ? leading : stride) +
            uint32_t(k % 8) * uint32_t(16 * width) + uint32_t(k / 8) * (span ? stride : leading) +
            uint32_t(row % per_chunk * bytes);
    }
    return swizzled(at, span);
  }
};

struct Product {  // one wgmma.mma_async, equal in all threads but for the registers
  int n;
  Element type;
  bool a_in_registers;
  uint64_t a_descriptor, b_descriptor;
  bool a_transposed, b_transposed, accumulate;
  Where where;
  int issued, retired;  // threads
  bool done;
  struct {
    float* d;
    const uint32_t* a;
    uint32_t a_values[4];
  } thread[128];
};
struct Chain {  // accumulators of one thread that products are under way to
  float* registers;
  std::vector<float> value;
  uint64_t last;  // product
};
struct Warpgroup {
  std::deque<Product> products;
  uint64_t first = 0;  // number of products.front()
  struct {
    uint64_t next, retired;  // products issued, and waited for
    std::deque<uint64_t> groups;
    std::vector<Chain> chains;
    bool fenced;
  } thread[128] = {};
  std::vector<int> waiting;
  char token;  // TSan
};
inline std::map<int, Warpgroup> warpgroups;  // of the running block
constexpr uint32_t kInFlight = 0x7fc0dead;   // a NaN

inline Warpgroup& this_warpgroup() {
  static const bool once = at_block_end([] {
    for (auto& group : warpgroups)
      if (!group.second.products.empty()) fail_at_end("a wgmma was not waited for before its block ended");
    warpgroups.clear();
  });
  (void)once;
  return warpgroups[machine.cur->id / 128];
}
EMU_FAST inline void check_in_flight(const Chain& chain, Where where) {
  for (size_t i = 0; i < chain.value.size(); i++) {
    uint32_t bits;
    std::memcpy(&bits, &chain.registers[i], 4);
    if (bits != kInFlight) fail("wgmma: accumulators were written while it was under way", where);
  }
}

inline void wgmma_fence() {
  Internal guard;
  this_warpgroup().thread[machine.cur->id % 128].fenced = true;
}

// wgmma.mma_async.sync.aligned.m64nNkK: d[N / 8][4] (+)= A B, K being 32 bytes. a: four registers, or null
// and a descriptor.
inline void wgmma(Element type, int n, float* d, const uint32_t* a, uint64_t a_descriptor, bool a_transposed,
                  uint64_t b_descriptor, bool b_transposed, bool accumulate, Where where) {
  Internal guard;
  Warpgroup& group = this_warpgroup();
  const int id = machine.cur->id % 128;
  auto& thread = group.thread[id];
  if (!thread.fenced) fail("wgmma: no wgmma.fence since registers may have changed", where);
  const uint64_t number = thread.next++;
  if (number - group.first == group.products.size())
    group.products.push_back({n,
                              type,
                              a != nullptr,
                              a_descriptor,
                              b_descriptor,
                              a_transposed,
                              b_transposed,
                              accumulate,
                              where,
                              0,
                              0,
                              false,
                              {}});
  Product& p = group.products[number - group.first];
  if (p.n != n || p.type != type || p.a_in_registers != (a != nullptr) || p.a_descriptor != a_descriptor ||
      p.b_descriptor != b_descriptor || p.a_transposed != a_transposed || p.b_transposed != b_transposed ||
      p.accumulate != accumulate)
    fail("wgmma: threads of a warpgroup issue different ones", where);
  p.thread[id].d = d, p.thread[id].a = a;
  if (a) std::memcpy(p.thread[id].a_values, a, 16);
  Chain* chain = nullptr;
  for (Chain& c : thread.chains)
    if (c.registers == d) chain = &c;
  if (chain) {
    if (chain->value.size() != size_t(n / 2))
      fail("wgmma: another shape is under way to these registers", where);
    check_in_flight(*chain, where);
  } else {
    thread.chains.push_back({d, std::vector<float>(d, d + n / 2), 0});
    chain = &thread.chains.back();
    for (int i = 0; i < n / 2; i++) std::memcpy(d + i, &kInFlight, 4);
  }
  chain->last = number;
  release(&group.token);
  if (++p.issued == 128) wake_all(group.waiting);
}

inline void wgmma_commit() {
  Internal guard;
  auto& thread = this_warpgroup().thread[machine.cur->id % 128];
  thread.groups.push_back(thread.next);
}

// Reads an operand of 32 bytes a row: values[row][k], or [k][row] when `transposed_values`.
inline void read_operand(float* values, const Operand& from, int rows, int k_count, Element type,
                         bool k_first, Where where) {
  const int step = 16 / from.bytes;
  for (int outer = 0; outer < (from.row_major_k ? rows : k_count); outer++)
    for (int inner = 0; inner < (from.row_major_k ? k_count : rows); inner += step) {
      const uint32_t address = from.row_major_k ? from.address(outer, inner) : from.address(inner, outer);
      unsigned char chunk[16];
      async_read(chunk, shared_offset(address, 16, "wgmma", where), 16, "wgmma", where);
      for (int i = 0; i < step; i++) {
        const int row = from.row_major_k ? outer : inner + i, k = from.row_major_k ? inner + i : outer;
        values[k_first ? k * rows + row : row * k_count + k] = element_value(type, chunk + i * from.bytes);
      }
    }
}

// Fragments (PTX ISA, "Register Fragments for wgmma"): of 16 rows a warp, lane l holds rows l / 4 and l / 4 +
// 8; of A four times four bytes (rows, then the upper half of k), of D pairs of columns l % 4 * 2 in each
// eight.
EMU_FAST inline void multiply(const Product& p, float* a, const float* b, float* const* d) {
  const int bytes = element_bytes(p.type), k_count = 32 / bytes;
  if (p.a_in_registers)
    for (int t = 0; t < 128; t++)
      for (int r = 0; r < 4; r++)
        for (int i = 0; i < 4 / bytes; i++) {
          const int row = t / 32 * 16 + t % 32 / 4 + r % 2 * 8;
          const int k = t % 4 * (4 / bytes) + r / 2 * (k_count / 2) + i;
          unsigned char element[4];
          std::memcpy(element, &p.thread[t].a_values[r], 4);
          a[row * k_count + k] = element_value(p.type, element + i * bytes);
        }
  std::vector<float> c(size_t(64 * p.n));
  for (int row = 0; row < 64; row++)
    for (int k = 0; k < k_count; k++) {
      const float x = a[row * k_count + k];
      float* to = &c[size_t(row * p.n)];
      const float* from = b + k * p.n;
      for (int j = 0; j < p.n; j++) to[j] += x * from[j];
    }
  for (int t = 0; t < 128; t++)
    for (int i = 0; i < p.n / 2; i++) {
      const int row = t / 32 * 16 + t % 32 / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + t % 4 * 2 + i % 2;
      d[t][i] = (p.accumulate ? d[t][i] : 0.f) + c[size_t(row * p.n + column)];
    }
}
inline void execute(Warpgroup& group, Product& p) {
  const int bytes = element_bytes(p.type), k_count = 32 / bytes;
  std::vector<float> a(size_t(64 * k_count)), b(size_t(k_count * p.n));
  acquire(&group.token);
  if (!p.a_in_registers)
    read_operand(a.data(), Operand(p.a_descriptor, p.a_transposed, bytes, p.where), 64, k_count, p.type,
                 false, p.where);
  read_operand(b.data(), Operand(p.b_descriptor, p.b_transposed, bytes, p.where), p.n, k_count, p.type, true,
               p.where);
  release(&group.token);
  Internal guard;
  float* d[128];
  for (int t = 0; t < 128; t++)
    for (Chain& c : group.thread[t].chains)
      if (c.registers == p.thread[t].d) d[t] = c.value.data();
  multiply(p, a.data(), b.data(), d);
  p.done = true;
}

// The thread has waited for all products before `end`: its A registers are its own again, and what all
// threads have waited for is forgotten.
inline void retire(Warpgroup& group, int id, uint64_t end, Where where) {
  auto& thread = group.thread[id];
  for (; thread.retired < end; thread.retired++) {
    Product& p = group.products[thread.retired - group.first];
    if (p.a_in_registers && std::memcmp(p.thread[id].a, p.thread[id].a_values, 16) != 0)
      fail("wgmma: registers of A were written while it was under way", where);
    p.retired++;
  }
  for (; !group.products.empty() && group.products.front().retired == 128; group.first++)
    group.products.pop_front();
}

// wgmma.wait_group: at most `pending` of the thread's groups stay under way.
inline void wgmma_wait(size_t pending, Where where) {
  Warpgroup& group = this_warpgroup();
  const int id = machine.cur->id % 128;
  auto& thread = group.thread[id];
  uint64_t end = 0;  // products before it are waited for
  {
    Internal guard;
    for (; thread.groups.size() > pending; thread.groups.pop_front()) end = thread.groups.front();
    thread.fenced = false;
  }
  for (uint64_t number = group.first; number < end; number++) {
    if (number < group.first) continue;  // all threads are through with it
    Product& p = group.products[number - group.first];
    while (p.issued < 128) {
      Internal guard;
      sleep(group.waiting, "wgmma.wait_group, for other warps to issue", where);
    }
    if (!p.done) execute(group, p);
  }
  acquire(&group.token);
  Internal guard;
  for (size_t i = 0; i < thread.chains.size();) {
    Chain& chain = thread.chains[i];
    if (chain.last >= end) {
      i++;
      continue;
    }
    check_in_flight(chain, where);
    std::copy(chain.value.begin(), chain.value.end(), chain.registers);
    thread.chains.erase(thread.chains.begin() + long(i));
  }
  retire(group, id, end, where);
}

}  // namespace emu::sm90
