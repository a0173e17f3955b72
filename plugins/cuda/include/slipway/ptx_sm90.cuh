// PTX that only sm_90 and later have: mbarrier, bulk copies (TMA), proxy fences, named barriers, registers of
// a warpgroup. wgmma is in ptx_wgmma.cuh. See the PTX ISA for each; the emulator (emulator/sm90*.hpp) states
// them.
#pragma once
#include "slipway/ptx_memory.cuh"

#ifdef __CUDACC__
#include <cuda.h>  // types alone: nothing of libcuda is linked
#else
#include "sm90.hpp"
#endif

#ifdef __CUDACC__
#define PTX_WHERE_ONLY  // as PTX_WHERE, where there is no parameter before it
#else
#define PTX_WHERE_ONLY EMU_HERE
#endif

// One instruction, as asm takes it; or what states it in the emulator.
#ifdef __CUDACC__
#define PTX_OR_EMULATED(emulated, ...) asm volatile(__VA_ARGS__)
#else
#define PTX_OR_EMULATED(emulated, ...) emulated
#endif

namespace ptx {

#ifdef __CUDACC__
using TensorMap = CUtensorMap;
#else
using TensorMap = emu::TensorMap;
#endif

// ---- mbarrier: 8 bytes of shared memory, in phases that end when all arrivals and announced bytes are there

// One thread initialises; mbarrier_fence_init() by it and a barrier of the block come before any use.
__device__ __forceinline__ void mbarrier_init(uint64_t* bar, uint32_t arrivals PTX_WHERE) {
  PTX_OR_EMULATED(emu::sm90::mbarrier_init(bar, arrivals, emu_where),
                  "mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(smem_address(bar)), "r"(arrivals)
                  : "memory");
}
// The copy engine sees the barriers that this thread has initialised.
__device__ __forceinline__ void mbarrier_fence_init() {
  PTX_OR_EMULATED(emu::sm90::publish_mbarriers(), "fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint64_t* bar PTX_WHERE) {
  PTX_OR_EMULATED(emu::sm90::mbarrier_arrive(bar, 0, emu_where),
                  "mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(smem_address(bar))
                  : "memory");
}
// Arrives, and announces bytes that bulk copies bring in this phase.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* bar, uint32_t bytes PTX_WHERE) {
  PTX_OR_EMULATED(emu::sm90::mbarrier_arrive(bar, bytes, emu_where),
                  "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(smem_address(bar)),
                  "r"(bytes)
                  : "memory");
}
// Waits for the end of the phase of this parity; phases count from 0. Parity 1 on a fresh barrier does not
// wait.
__device__ __forceinline__ void mbarrier_wait(uint64_t* bar, uint32_t parity PTX_WHERE) {
#ifdef __CUDACC__
  uint32_t done = 0;
  while (!done)
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(smem_address(bar)), "r"(parity)
        : "memory");
#else
  emu::sm90::mbarrier_wait(bar, parity, emu_where);
#endif
}

// ---- bulk copies

// What this thread's ordinary stores wrote to shared memory becomes visible to bulk copies and wgmma, after a
// barrier also those that other threads start.
__device__ __forceinline__ void fence_proxy_async() {
  PTX_OR_EMULATED(emu::sm90::fence_proxy_async(), "fence.proxy.async.shared::cta;\n" ::: "memory");
}
__device__ __forceinline__ void prefetch_tensor_map(const TensorMap* map) {
  PTX_OR_EMULATED((void)map, "prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}
// Copies `bytes` from global to shared memory, all three multiples of 16; `bar` counts the bytes.
__device__ __forceinline__ void bulk_load(void* dst, const void* src, uint32_t bytes,
                                          uint64_t* bar PTX_WHERE) {
  PTX_OR_EMULATED(
      emu::sm90::bulk_load(dst, src, bytes, bar, emu_where),
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(
          smem_address(dst)),
      "l"(src), "r"(bytes), "r"(smem_address(bar))
      : "memory");
}
// Copies the box that begins at these coordinates (innermost axis first) of a tensor of two or three
// axes. `dst` is a multiple of 128 bytes. Elements outside the tensor become zero; `bar` counts the bytes of
// the whole box.
__device__ __forceinline__ void tensor_load(void* dst, const TensorMap* map, uint64_t* bar, int c0,
                                            int c1 PTX_WHERE) {
  PTX_OR_EMULATED(
      emu::sm90::tensor_load(dst, *map, bar, {c0, c1}, emu_where),
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
      "[%2];\n" ::"r"(smem_address(dst)),
      "l"(map), "r"(smem_address(bar)), "r"(c0), "r"(c1)
      : "memory");
}
__device__ __forceinline__ void tensor_load(void* dst, const TensorMap* map, uint64_t* bar, int c0, int c1,
                                            int c2 PTX_WHERE) {
  PTX_OR_EMULATED(
      emu::sm90::tensor_load(dst, *map, bar, {c0, c1, c2}, emu_where),
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];\n" ::"r"(smem_address(dst)),
      "l"(map), "r"(smem_address(bar)), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
// The other way; what lies outside the tensor is not written. The thread commits its stores and waits for
// them.
__device__ __forceinline__ void tensor_store(const TensorMap* map, const void* src, int c0, int c1,
                                             int c2 PTX_WHERE) {
  PTX_OR_EMULATED(
      emu::sm90::tensor_store(*map, {c0, c1, c2}, src, emu_where),
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];\n" ::"l"(map),
      "r"(smem_address(src)), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
__device__ __forceinline__ void bulk_commit() {
  PTX_OR_EMULATED(emu::sm90::bulk_commit(), "cp.async.bulk.commit_group;\n" ::: "memory");
}
// At most `Pending` of this thread's groups have still to read shared memory.
template <int Pending>
__device__ __forceinline__ void bulk_wait_read() {
  PTX_OR_EMULATED(emu::sm90::bulk_wait(Pending), "cp.async.bulk.wait_group.read %0;\n" ::"n"(Pending)
                  : "memory");
}

// ---- threads

// Named barriers 1 to 15, of `threads` threads in all, a multiple of 32: those that wait, and those that only
// arrive.
__device__ __forceinline__ void named_barrier_wait(int id, int threads PTX_WHERE) {
  PTX_OR_EMULATED(emu::sm90::named_barrier(id, threads, true, emu_where), "bar.sync %0, %1;\n" ::"r"(id),
                  "r"(threads)
                  : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(int id, int threads PTX_WHERE) {
  PTX_OR_EMULATED(emu::sm90::named_barrier(id, threads, false, emu_where), "bar.arrive %0, %1;\n" ::"r"(id),
                  "r"(threads)
                  : "memory");
}
// All warps of a warpgroup give registers back, or take what others gave. The kernel needs
// __launch_bounds__(threads, 1).
template <int Registers>
__device__ __forceinline__ void registers_decrease(PTX_WHERE_ONLY) {
  PTX_OR_EMULATED(emu::sm90::set_registers(Registers, emu_where),
                  "setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(Registers));
}
template <int Registers>
__device__ __forceinline__ void registers_increase(PTX_WHERE_ONLY) {
  PTX_OR_EMULATED(emu::sm90::set_registers(Registers, emu_where),
                  "setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(Registers));
}
// True in one lane of the warp, always the same one. All lanes call it.
__device__ __forceinline__ bool elect_one(PTX_WHERE_ONLY) {
#ifdef __CUDACC__
  uint32_t elected = 0;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.b32 %0, 1, 0, p;\n}\n" : "=r"(elected));
  return elected != 0;
#else
  emu::syncwarp(~0u, emu_where);
  return emu::lane_id() == int(emu::machine.seed % 32);
#endif
}

}  // namespace ptx
