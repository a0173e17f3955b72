// Copies between memories: cp.async, loads with cache hints, prefetch.
#pragma once
#include "slipway/platform.cuh"

namespace ptx {

#ifdef __CUDACC__
__device__ __forceinline__ uint32_t smem_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
#endif

// Copies 16 bytes from global to shared memory, past L1; with `valid` false writes zeros and reads nothing (`src`
// must still be a valid address). Both addresses are multiples of 16. Nobody may touch dst before the wait.
__device__ __forceinline__ void cp_async_16(void* dst, const void* src, bool valid = true PTX_WHERE) {
#ifdef __CUDACC__
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(smem_address(dst)), "l"(src),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  emu::cp_async(dst, src, 16, valid ? 16 : 0, emu_where);
#endif
}
// The same for 4 or 8 bytes, through L1.
template <int Bytes>
__device__ __forceinline__ void cp_async_small(void* dst, const void* src, bool valid = true PTX_WHERE) {
  static_assert(Bytes == 4 || Bytes == 8, "cp_async_16 copies 16");
#ifdef __CUDACC__
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(smem_address(dst)), "l"(src), "n"(Bytes),
               "r"(valid ? Bytes : 0)
               : "memory");
#else
  emu::cp_async(dst, src, Bytes, valid ? Bytes : 0, emu_where);
#endif
}
// Ends a group of copies of this thread.
__device__ __forceinline__ void cp_async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#else
  emu::cp_async_commit();
#endif
}
// Waits until at most `Pending` of this thread's groups are in flight. Other threads see the copies after a barrier.
template <int Pending>
__device__ __forceinline__ void cp_async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
#else
  emu::cp_async_wait(Pending);
#endif
}

// Loads what is read once and not written while the kernel runs: past L1, which is left to others. T: uint32_t, uint2 or
// uint4; `p` is aligned to its size.
template <class T>
__device__ __forceinline__ T load_once(const T* p) {
#ifdef __CUDACC__
  constexpr int kWords = sizeof(T) / 4;
  static_assert(kWords * 4 == sizeof(T) && (kWords == 1 || kWords == 2 || kWords == 4), "one access of a thread");
  uint32_t v[kWords];
  if constexpr (kWords == 4)
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "l"(p));
  else if constexpr (kWords == 2)
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];\n" : "=r"(v[0]), "=r"(v[1]) : "l"(p));
  else
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.u32 %0, [%1];\n" : "=r"(v[0]) : "l"(p));
  T whole;
  memcpy(&whole, v, sizeof(T));
  return whole;
#else
  return *p;
#endif
}

// Asks for the line of a global address to be brought to L2. Reads nothing, may point anywhere in a tensor.
__device__ __forceinline__ void prefetch_l2(const void* p) {
#ifdef __CUDACC__
  asm volatile("prefetch.global.L2 [%0];\n" ::"l"(p));
#else
  (void)p;
#endif
}

// Programmatic dependent launch: with launch_overlapped() a kernel may begin before the one before it in the stream
// has ended. previous_kernel_wait(): what that one wrote may be read from here on (and everything it reads may be
// overwritten); every thread that touches such memory calls it first. next_kernel_start(): the one after this may
// begin once all blocks have called it or ended. Nothing below sm_90.
__device__ __forceinline__ void previous_kernel_wait() {
#ifndef __CUDACC__
  emu::previous_kernel_wait();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}
__device__ __forceinline__ void next_kernel_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}

}  // namespace ptx
