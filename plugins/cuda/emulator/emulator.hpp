// emulator.hpp - run CUDA C++ kernels on the CPU, one fiber per CUDA thread.
//
// Include it (through ptx.hpp) instead of the CUDA headers when the compiler is not nvcc. The aim is
// to find wrong kernels, not to be fast:
//   * threads of a block run in an order drawn from a seed, and a warp may run far ahead of the others;
//   * shared memory is a heap allocation of the exact size (ASan guards its ends), filled with NaN;
//   * cp.async delivers at the wait and not before; until then its destination holds NaN;
//   * warp operations wait for every lane of their mask; diverging or missing lanes are reported;
//   * a block in which no thread can run is reported with the place each thread waits at;
//   * under -fsanitize=thread only the synchronisation that CUDA promises orders two threads, so a
//     missing barrier is reported whatever the schedule.
// Blocks run one after another (in a shuffled order): a kernel whose blocks wait for each other hangs.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if 1
#include <ucontext.h>
#else
#include <boost/context/detail/fcontext.hpp>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
extern "C" void AnnotateIgnoreReadsBegin(const char*, int);
extern "C" void AnnotateIgnoreReadsEnd(const char*, int);
extern "C" void AnnotateIgnoreWritesBegin(const char*, int);
extern "C" void AnnotateIgnoreWritesEnd(const char*, int);
#endif

// ---- language ---------------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static  // lives as long as the process and is not refilled: prefer dynamic memory
#define __launch_bounds__(...)
#define EMU_FAST __attribute__((no_sanitize("address", "undefined", "thread")))  // arithmetic only

struct uint3 { unsigned x, y, z; };
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

// ---- 16-bit floating point ----------------------------------------------------------------------
struct __nv_fp8_e4m3 { uint8_t __x; };
struct __half { uint16_t bits; };
struct __nv_bfloat16 { uint16_t bits; };

EMU_FAST inline float __half2float(__half h) {
  _Float16 f;
  std::memcpy(&f, &h, 2);
  return float(f);
}
EMU_FAST inline __half __float2half_rn(float f) {
  _Float16 h = _Float16(f);
  __half r;
  std::memcpy(&r, &h, 2);
  return r;
}
EMU_FAST inline float __bfloat162float(__nv_bfloat16 h) {
  uint32_t u = uint32_t(h.bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
EMU_FAST inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  if (f != f) return {0x7fff};
  return {uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

namespace emu {

// ---- fibers -------------------------------------------------------------------------------------
constexpr size_t kStack = 128 << 10, kGuard = 4096;  // ASan frames are several times larger than plain

struct Context {
#if 1
  ucontext_t uc;
#else
  boost::context::detail::fcontext_t fc = nullptr;
#endif
  const void* bottom = nullptr;  // ASan: the stack this context runs on, and its saved fake stack
  size_t size = 0;
  void* fake = nullptr;
  void* tsan = nullptr;
};

struct Fault : std::runtime_error { using std::runtime_error::runtime_error; };
struct Where { const char* file; int line; };
#define EMU_HERE emu::Where emu_where = {__builtin_FILE(), __builtin_LINE()}

struct Copy { void* dst; unsigned char data[16]; int bytes; };
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
  unsigned block_syncs, warp_syncs;
  std::vector<Copy> open;                   // cp.async issued since the last commit
  std::deque<std::vector<Copy>> committed;  // groups not waited for yet
};
struct Warp {
  uint32_t ready;
  std::vector<Group> groups;
  char token[2];  // addresses that stand for __syncwarp in TSan
};

struct Machine {
  uint64_t seed = 1, state = 1;
  unsigned preempt = 64;  // one in this many thread switches also changes the warp
  dim3 grid, block;
  uint3 bid;
  int n_threads = 0, alive = 0, arrived = 0;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<unsigned char*> stacks;
  std::function<void()> body;
  Context main;
  Thread* cur = nullptr;
  unsigned char* smem = nullptr;
  size_t smem_bytes = 0;
  std::string fault;
  char token[3];  // TSan: __syncthreads (two phases), end of the launch
  uint32_t random() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return uint32_t(state >> 16);
  }
};
inline Machine machine;

struct Internal {  // TSan: what the emulator itself reads and writes in this scope is no race
#ifdef __SANITIZE_THREAD__
  Internal() { AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0); }
  ~Internal() { AnnotateIgnoreReadsEnd("", 0), AnnotateIgnoreWritesEnd("", 0); }
#else
  Internal() {}
#endif
};
#ifdef __SANITIZE_THREAD__
inline void release(void* token) { __tsan_release(token); }
inline void acquire(void* token) { __tsan_acquire(token); }
#else
inline void release(void*) {}
inline void acquire(void*) {}
#endif

// Every stack switch is announced to the sanitizer, else ASan takes the frames of another fiber for
// its own (false reports, or a crash while it unwinds).
inline EMU_FAST void arrive(Context& self, Context& from) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(self.fake, &from.bottom, &from.size);
#endif
  (void)self, (void)from;
}
inline EMU_FAST void jump(Context& from, Context& to, bool last = false) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake, to.bottom, to.size);
#endif
#ifdef __SANITIZE_THREAD__
  __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#endif
  (void)last;
#if 1
  swapcontext(&from.uc, &to.uc);
  arrive(from, to);  // the scheduler is one side of every switch, so `to` is who came back
#else
  auto t = boost::context::detail::jump_fcontext(to.fc, &from);
  static_cast<Context*>(t.data)->fc = t.fctx;
  arrive(from, *static_cast<Context*>(t.data));
#endif
}

inline void suspend() { jump(machine.cur->ctx, machine.main); }
[[noreturn]] inline void fail(std::string what, Where w) {  // by value: an abandoned stack must own no heap
  Machine& m = machine;
  what += " (thread " + std::to_string(m.cur->id) + " of block " + std::to_string(m.bid.x) + "," +
          std::to_string(m.bid.y) + "," + std::to_string(m.bid.z) + ", " + w.file + ":" + std::to_string(w.line) +
          ", seed " + std::to_string(m.seed) + ")";
  m.fault = std::move(what);
  suspend();  // the scheduler throws the fault and never resumes this fiber
  std::abort();
}

inline void end_thread() {
  Internal guard;
  Thread& t = *machine.cur;
  if (!t.open.empty() || !t.committed.empty()) fail("cp.async not waited for before the thread ends", t.where);
  release(&machine.token[2]);
  t.state = Thread::Done;
  machine.alive--;
}
inline EMU_FAST void fiber_main() {
  machine.body();
  end_thread();
  jump(machine.cur->ctx, machine.main, true);
}
#if 1
inline EMU_FAST void fiber_entry() {
  arrive(machine.cur->ctx, machine.main);
  fiber_main();
}
#else
inline EMU_FAST void fiber_entry(boost::context::detail::transfer_t t) {
  static_cast<Context*>(t.data)->fc = t.fctx;
  arrive(machine.cur->ctx, *static_cast<Context*>(t.data));
  fiber_main();
}
#endif

inline std::string deadlock() {
  std::string s = "deadlock:";
  for (auto& t : machine.threads) {
    auto same = [&](Thread& u) {
      return u.state == t.state && (t.state == Thread::Done || (u.op == t.op && u.where.line == t.where.line));
    };
    if (t.id > 0 && same(machine.threads[t.id - 1])) continue;  // print runs of threads, not each
    int last = t.id;
    while (last + 1 < machine.n_threads && same(machine.threads[last + 1])) last++;
    s += "\n  threads " + std::to_string(t.id) + "-" + std::to_string(last) + " ";
    s += t.state == Thread::Done ? std::string("have ended")
                                 : std::string("wait in ") + t.op + " at " + t.where.file + ":" +
                                       std::to_string(t.where.line);
  }
  return s + "\n  seed " + std::to_string(machine.seed);
}

inline void start(Thread& t, int id) {
  Machine& m = machine;
  if (int(m.stacks.size()) <= id) {
    auto* p = static_cast<unsigned char*>(
        mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(p, kGuard, PROT_NONE);  // a stack overflow faults instead of hitting the neighbour
    m.stacks.push_back(p + kGuard);
  }
  unsigned char* stack = m.stacks[id];
  t = Thread{};
  t.id = id;
  t.tid = {id % m.block.x, id / m.block.x % m.block.y, id / m.block.x / m.block.y};
  t.ctx.bottom = stack, t.ctx.size = kStack;
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack, kStack);  // frames that a fault left behind
#endif
#ifdef __SANITIZE_THREAD__
  t.ctx.tsan = __tsan_create_fiber(0);
#endif
#if 1
  getcontext(&t.ctx.uc);
  t.ctx.uc.uc_stack.ss_sp = stack, t.ctx.uc.uc_stack.ss_size = kStack, t.ctx.uc.uc_link = nullptr;
  makecontext(&t.ctx.uc, fiber_entry, 0);
#else
  t.ctx.fc = boost::context::detail::make_fcontext(stack + kStack, kStack, fiber_entry);
#endif
  m.warps[id / 32].ready |= 1u << id % 32;
}

inline void run_block() {
  Machine& m = machine;
  void* smem = nullptr;
  if (posix_memalign(&smem, 128, m.smem_bytes)) throw std::bad_alloc();
  std::memset(smem, 0xff, m.smem_bytes);  // NaN in every floating-point format
  m.smem = static_cast<unsigned char*>(smem);
  m.alive = m.n_threads, m.arrived = 0;
  m.warps.assign((m.n_threads + 31) / 32, Warp{});
  m.threads.resize(m.n_threads);
  for (int i = 0; i < m.n_threads; i++) start(m.threads[i], i);
  unsigned n_warps = m.warps.size(), w = m.random() % n_warps;
  while (m.alive > 0 && m.fault.empty()) {
    if (!m.warps[w].ready || m.random() % m.preempt == 0) {
      unsigned k = 0, first = m.random() % n_warps;
      while (k < n_warps && !m.warps[(first + k) % n_warps].ready) k++;
      if (k == n_warps) { m.fault = deadlock(); break; }
      w = (first + k) % n_warps;
    }
    uint32_t ready = m.warps[w].ready, turn = m.random() % 32;
    uint32_t rotated = ready >> turn | ready << ((32 - turn) & 31);
    unsigned lane = (__builtin_ctz(rotated) + turn) % 32;
    m.warps[w].ready &= ~(1u << lane);
    m.cur = &m.threads[w * 32 + lane];
    jump(m.main, m.cur->ctx);
  }
#ifdef __SANITIZE_THREAD__
  if (!m.fault.empty()) {  // TSan can neither destroy suspended fibers nor order the clean-up after them
    std::fprintf(stderr, "FAIL emulator: %s\n", m.fault.c_str());
    std::_Exit(1);
  }
  for (auto& t : m.threads) __tsan_destroy_fiber(t.ctx.tsan);
  // Blocks are unordered for TSan (it finds races between them), so they cannot share stacks.
  for (auto* p : m.stacks) munmap(p - kGuard, kStack + kGuard);
  m.stacks.clear();
#endif
  std::free(m.smem);
  if (!m.fault.empty()) throw Fault(std::exchange(m.fault, {}));
}

// Runs kernel(args...) over the grid. Throws Fault.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem_bytes, A... args) {
  Internal guard;
  Machine& m = machine;
  m.grid = grid, m.block = block, m.smem_bytes = smem_bytes;
  m.n_threads = block.x * block.y * block.z;
  m.state = m.seed * 0x9e3779b97f4a7c15ull | 1;
  m.body = [=] { kernel(args...); };
#ifdef __SANITIZE_THREAD__
  m.main.tsan = __tsan_get_current_fiber();
#endif
  std::vector<unsigned> order(size_t(grid.x) * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0u);
  for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[m.random() % i]);
  for (unsigned b : order) {
    m.bid = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    run_block();
  }
  acquire(&m.token[2]);
}

// ---- what a kernel calls ------------------------------------------------------------------------
// Functions and not variables: TSan must not see the scheduler write what a thread reads.
__attribute__((noinline)) inline EMU_FAST uint3 thread_idx() { return machine.cur->tid; }
__attribute__((noinline)) inline EMU_FAST uint3 block_idx() { return machine.bid; }
inline EMU_FAST dim3 block_dim() { return machine.block; }
inline EMU_FAST dim3 grid_dim() { return machine.grid; }
inline EMU_FAST unsigned char* dynamic_smem() { return machine.smem; }
inline bool in_smem(const void* p, size_t n) {
  auto* c = static_cast<const unsigned char*>(p);
  return c >= machine.smem && c + n <= machine.smem + machine.smem_bytes;
}

// All lanes of `mask` meet; the last one runs `exec` on everyone's arguments. Orders no memory.
template <class A>
void collective(const char* op, uint32_t mask, A& args, void (*exec)(A* const*, uint32_t), Where where) {
  Internal guard;
  Thread& t = *machine.cur;
  Warp& w = machine.warps[t.id / 32];
  uint32_t me = 1u << t.id % 32;
  if (!(mask & me)) fail(std::string(op) + ": the calling lane is not in its mask", where);
  auto g = std::find_if(w.groups.begin(), w.groups.end(), [&](Group& x) { return x.mask & mask; });
  if (g == w.groups.end()) g = w.groups.insert(g, Group{op, mask, 0, {}});
  if (g->mask != mask || std::strcmp(g->op, op))
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
}

inline void syncwarp(uint32_t mask, Where where) {
  Thread& t = *machine.cur;
  char* token = &machine.warps[t.id / 32].token[t.warp_syncs++ & 1];
  int none = 0;
  release(token);
  collective<int>("__syncwarp", mask, none, [](int* const*, uint32_t) {}, where);
  acquire(token);
}

inline EMU_FAST void syncthreads(Where where) {
  Machine& m = machine;
  Thread& t = *m.cur;
  char* token = &m.token[t.block_syncs++ & 1];
  release(token);
  if (++m.arrived < m.n_threads) {
    t.state = Thread::AtBlock, t.op = "__syncthreads", t.where = where;
    suspend();
    t.state = Thread::Ready;
  } else {
    m.arrived = 0;
    for (auto& u : m.threads)
      if (u.id != t.id) m.warps[u.id / 32].ready |= 1u << u.id % 32;
  }
  acquire(token);
}

template <class T>
T shuffle(const char* op, uint32_t mask, T v, int src, Where where) {
  struct A { T v; int src; T out; bool bad; } a{v, src, v, false};
  collective<A>(op, mask, a, [](A* const* all, uint32_t mask) {
    for (int i = 0; i < 32; i++)
      if (mask >> i & 1) {
        all[i]->bad = !(mask >> all[i]->src & 1);
        if (!all[i]->bad) all[i]->out = all[all[i]->src]->v;
      }
  }, where);
  if (a.bad) fail(std::string(op) + ": reads a lane outside the mask", where);
  return a.out;
}
inline int lane_id() { return machine.cur->id % 32; }

// What the copy engine writes: `src`, or NaN while a copy is in flight. Plain stores of the calling
// thread, because TSan does not report the library's memset and memcpy on a fiber.
inline void put(void* dst, const unsigned char* src, int bytes) {
  for (int i = 0; i < bytes; i += 4) {
    uint32_t word = ~0u;
    if (src) std::memcpy(&word, src + i, 4);
    *reinterpret_cast<volatile uint32_t*>(static_cast<char*>(dst) + i) = word;
  }
}

// ---- cp.async -------------------------------------------------------------------------------------
inline void cp_async(void* dst, const void* src, int bytes, int valid, Where where) {
  Copy c{dst, {}, bytes};
  std::memcpy(c.data, src, valid);  // read now, so that ASan reports a bad address at the issue
  if (!in_smem(dst, bytes)) fail("cp.async: destination outside shared memory", where);
  if (uintptr_t(dst) % bytes || uintptr_t(src) % bytes) fail("cp.async: misaligned", where);
  put(dst, nullptr, bytes);  // nobody may rely on the destination before the wait
  Internal guard;
  for (auto& group : machine.cur->committed)
    for (auto& x : group)
      if (x.dst == dst) fail("cp.async: an earlier group still writes this address", where);
  machine.cur->open.push_back(c);
  machine.cur->where = where;
}
inline void cp_async_commit() {
  Internal guard;
  machine.cur->committed.push_back(std::exchange(machine.cur->open, {}));
}
inline void cp_async_wait(size_t pending) {
  std::vector<Copy> done;
  {
    Internal guard;
    auto& q = machine.cur->committed;
    for (; q.size() > pending; q.pop_front()) done.insert(done.end(), q.front().begin(), q.front().end());
  }
  for (auto& c : done) put(c.dst, c.data, c.bytes);
}

// ---- tensor core ------------------------------------------------------------------------------------
// ldmatrix .x1/.x2/.x4: lane 8*i+r holds the address of row r of the i-th 8x8 matrix; lane l receives
// elements (l/4, 2*(l%4)) and (l/4, 2*(l%4)+1), with .trans the same of the transposed matrix.
template <int N, bool Trans>
void ldmatrix(uint32_t (&out)[N], const void* row, Where where) {
  struct A { uint16_t row[8]; uint32_t* out; } a{{}, out};
  if (lane_id() < 8 * N) {
    if (!in_smem(row, 16)) fail("ldmatrix: row outside shared memory", where);
    if (uintptr_t(row) % 16) fail("ldmatrix: row not 16-byte aligned", where);
    std::memcpy(a.row, row, 16);  // each lane reads its own row: the sanitizers see the right thread
  }
  collective<A>(Trans ? "ldmatrix.trans" : "ldmatrix", ~0u, a, [](A* const* all, uint32_t) EMU_FAST {
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < N; i++) {
        int r = l / 4, c = l % 4 * 2;
        uint32_t lo = Trans ? all[8 * i + c]->row[r] : all[8 * i + r]->row[c];
        uint32_t hi = Trans ? all[8 * i + c + 1]->row[r] : all[8 * i + r]->row[c + 1];
        all[l]->out[i] = lo | hi << 16;
      }
  }, where);
}

EMU_FAST inline float to_float(__half h) { return __half2float(h); }
EMU_FAST inline float to_float(__nv_bfloat16 h) { return __bfloat162float(h); }
template <class T>
EMU_FAST float part(uint32_t reg, int i) { return to_float(T{uint16_t(reg >> 16 * i)}); }

// mma.sync.m16n8k16 row.col, T inputs, f32 accumulate (PTX ISA, fragments for .f16/.bf16). With
// g = lane/4 and t = lane%4, half i of a register pair adds i to the column (of A, D) or row (of B).
template <class T>
EMU_FAST void mma_exec(float* const* d, const uint32_t* const* ra, const uint32_t* const* rb) {
  float a[16][16], b[16][8], c[16][8] = {};
  for (int l = 0; l < 32; l++)
    for (int i = 0; i < 2; i++) {
      int g = l / 4, t = l % 4 * 2 + i;
      a[g][t] = part<T>(ra[l][0], i), a[g + 8][t] = part<T>(ra[l][1], i);
      a[g][t + 8] = part<T>(ra[l][2], i), a[g + 8][t + 8] = part<T>(ra[l][3], i);
      b[t][g] = part<T>(rb[l][0], i), b[t + 8][g] = part<T>(rb[l][1], i);
    }
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < 16; k++)
      for (int j = 0; j < 8; j++) c[i][j] += a[i][k] * b[k][j];
  for (int l = 0; l < 32; l++)
    for (int i = 0; i < 4; i++) d[l][i] += c[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
}
template <class T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where) {
  struct A { float* d; const uint32_t *a, *b; } args{d, a, b};
  collective<A>("mma.sync", ~0u, args, [](A* const* all, uint32_t) EMU_FAST {
    float* d[32];
    const uint32_t *a[32], *b[32];
    for (int l = 0; l < 32; l++) d[l] = all[l]->d, a[l] = all[l]->a, b[l] = all[l]->b;
    mma_exec<T>(d, a, b);
  }, where);
}

// mma.sync.m16n8k32 row.col with 8-bit elements. Register i of A: rows g (i even) or g + 8, columns 4t + 16 * (i / 2)
// and the three next; register i of B: rows 4t + 16 * i and the three next, column g; D as for m16n8k16.
template <class D>
void mma_bytes(D (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], D (*element)(uint8_t), Where where) {
  struct A { D* d; const uint32_t *a, *b; D (*element)(uint8_t); } args{d, a, b, element};
  collective<A>("mma.sync.m16n8k32", ~0u, args, [](A* const* all, uint32_t) EMU_FAST {
    auto element = all[0]->element;
    D ma[16][32], mb[32][8], c[16][8] = {};
    for (int l = 0; l < 32; l++)
      for (int j = 0; j < 4; j++) {
        int g = l / 4, t = l % 4 * 4 + j;
        for (int i = 0; i < 4; i++) ma[g + i % 2 * 8][t + i / 2 * 16] = element(uint8_t(all[l]->a[i] >> 8 * j));
        for (int i = 0; i < 2; i++) mb[t + 16 * i][g] = element(uint8_t(all[l]->b[i] >> 8 * j));
      }
    for (int i = 0; i < 16; i++)
      for (int k = 0; k < 32; k++)
        for (int j = 0; j < 8; j++) c[i][j] += ma[i][k] * mb[k][j];
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < 4; i++) all[l]->d[i] += c[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
  }, where);
}

// Atomics order memory as well here, so a missing __threadfence is not found.
template <class T, class F>
T atomic_update(T* p, F f) {
  T old, next;
  __atomic_load(p, &old, __ATOMIC_ACQUIRE);
  do next = f(old); while (!__atomic_compare_exchange(p, &old, &next, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE));
  return old;
}
}  // namespace emu

#define threadIdx (emu::thread_idx())
#define blockIdx (emu::block_idx())
#define blockDim (emu::block_dim())
#define gridDim (emu::grid_dim())

inline void __syncthreads(EMU_HERE) { emu::syncthreads(emu_where); }
inline void __syncwarp(uint32_t mask = ~0u, EMU_HERE) { emu::syncwarp(mask, emu_where); }
inline void __threadfence() {}

template <class T>
T __shfl_sync(uint32_t mask, T v, int src, int width = 32, EMU_HERE) {
  int base = emu::lane_id() & ~(width - 1);
  return emu::shuffle("__shfl_sync", mask, v, base | (src & (width - 1)), emu_where);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T v, int x, int width = 32, EMU_HERE) {
  int l = emu::lane_id(), j = l ^ x;
  return emu::shuffle("__shfl_xor_sync", mask, v, j > (l | (width - 1)) ? l : j, emu_where);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T v, unsigned n, int width = 32, EMU_HERE) {
  int l = emu::lane_id(), j = l + int(n);
  return emu::shuffle("__shfl_down_sync", mask, v, j > (l | (width - 1)) ? l : j, emu_where);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, EMU_HERE) {
  struct A { bool p; uint32_t out; } a{predicate != 0, 0};
  emu::collective<A>("__ballot_sync", mask, a, [](A* const* all, uint32_t mask) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; i++) if (mask >> i & 1) bits |= uint32_t(all[i]->p) << i;
    for (int i = 0; i < 32; i++) if (mask >> i & 1) all[i]->out = bits;
  }, emu_where);
  return a.out;
}
inline int __any_sync(uint32_t mask, int p, EMU_HERE) { return __ballot_sync(mask, p, emu_where) != 0; }
inline int __all_sync(uint32_t mask, int p, EMU_HERE) { return __ballot_sync(mask, p, emu_where) == mask; }
// CUDA promises no more than that the caller is in the set; the emulator returns exactly that.
inline uint32_t __activemask() { return 1u << emu::lane_id(); }

template <class T> T atomicAdd(T* p, T v) { return emu::atomic_update(p, [=](T o) { return T(o + v); }); }
template <class T> T atomicMax(T* p, T v) { return emu::atomic_update(p, [=](T o) { return std::max(o, v); }); }
template <class T> T atomicCAS(T* p, T expected, T v) {
  return emu::atomic_update(p, [=](T o) { return o == expected ? v : o; });
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __fdividef(float a, float b) { return a / b; }
template <class T> T __ldg(const T* p) { return *p; }

#include "intrinsics.hpp"
#include "numeric.hpp"
