// Starting kernels.
#pragma once
#include <string>
#include <type_traits>

#include "slipway/errors.hpp"
#include "slipway/platform.cuh"

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <utility>
#endif

namespace ptx {

#ifdef __CUDACC__
inline void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // or the next call would report it again
  throw slipway::CudaError(std::string(what) + ": " + cudaGetErrorString(code));
}

// More than 48 KB of dynamic shared memory must be asked for, once a kernel and device.
inline void allow_shared_bytes(const void* kernel, size_t bytes) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, size_t> allowed;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const std::lock_guard<std::mutex> lock(mutex);
  size_t& most = allowed[{kernel, device}];
  if (bytes <= most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)),
        "launch: shared memory");
  most = bytes;
}
#endif

// Starts a kernel with `smem_bytes` of dynamic shared memory on a CUDA stream; the emulator runs it at once. Throws
// CudaError, and under the emulator emu::Fault for what the kernel did wrong. overlapped: see previous_kernel_wait().
template <class... P, class... A>
void launch_as(bool overlapped, void (*kernel)(P...), dim3 grid, dim3 block, size_t smem_bytes, void* stream,
               A... args) {
  static_assert(sizeof...(P) == sizeof...(A), "as many arguments as the kernel has parameters");
  static_assert((std::is_trivially_copyable<P>::value && ...), "kernel parameters are copied as bytes");
  static_assert((sizeof(P) + ... + 0) <= 4096, "kernel parameters have at most 4096 bytes");
#ifdef __CUDACC__
  if (smem_bytes > 48 << 10) allow_shared_bytes(reinterpret_cast<const void*>(kernel), smem_bytes);
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = smem_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute, config.numAttrs = overlapped ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, P(args)...), "launch");
#else
  (void)stream;
  emu::launch(overlapped, kernel, grid, block, smem_bytes, args...);
#endif
}
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem_bytes, void* stream, A... args) {
  launch_as(false, kernel, grid, block, smem_bytes, stream, args...);
}
// May begin before the kernel before it in the stream has ended, from sm_90 on; the launcher knows that the kernel
// calls previous_kernel_wait() (on older chips the attribute is refused, so it must not be used there).
template <class... P, class... A>
void launch_overlapped(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem_bytes, void* stream, A... args) {
  launch_as(true, kernel, grid, block, smem_bytes, stream, args...);
}

}  // namespace ptx
