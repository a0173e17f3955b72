// Who compiles: nvcc for the device, or any other C++17 compiler for the emulator. One kernel source serves both.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdio>
// Dynamic shared memory of the block, aligned for every kind of copy. The emulator fills it with NaN.
#define DYNAMIC_SMEM(name) extern __shared__ __align__(1024) unsigned char name[]
// T name[count] in shared memory, count a constant. At most one in a line of source.
#define STATIC_SMEM(T, name, count) __shared__ T name[count]
#define PTX_WHERE
#else
#include "emulator.hpp"
#define DYNAMIC_SMEM(name) unsigned char* const name = emu::dynamic_smem()
#define STATIC_SMEM(T, name, count) \
  T* const name = emu::static_smem<T>(count, __PRETTY_FUNCTION__, {__FILE__, __LINE__})
#define PTX_WHERE , EMU_HERE  // a defaulted argument that carries the caller's file and line
#endif

namespace ptx {

template <class T>
struct IsHalf {
  static constexpr bool value = false;
};
template <>
struct IsHalf<__half> {
  static constexpr bool value = true;
};

// Traps with the words unless `condition`: under the emulator always, on the device in builds with SLIPWAY_DEBUG; in
// others it costs nothing. For what a kernel reads from a tensor and then uses as an index.
__device__ __forceinline__ void device_check(bool condition, const char* words PTX_WHERE) {
#ifndef __CUDACC__
  if (!condition) emu::fail(words, emu_where);
#elif defined(SLIPWAY_DEBUG)
  if (!condition) {
    printf("slipway: %s (block %u,%u,%u, thread %u,%u,%u)\n", words, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x,
           threadIdx.y, threadIdx.z);
    __trap();
  }
#else
  (void)condition, (void)words;
#endif
}

}  // namespace ptx
