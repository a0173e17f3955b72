// ptx.hpp - the few PTX instructions the kernels use. nvcc gets inline assembly; any other compiler
// gets the emulator, so a kernel that uses only these wrappers runs on the CPU too.
#pragma once
#include <cstdint>
#include <string>

#include "slipway/errors.hpp"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdio>
#define DYNAMIC_SMEM(name) extern __shared__ __align__(128) unsigned char name[]
#define PTX_WHERE
#else
#include "emulator.hpp"
#define DYNAMIC_SMEM(name) unsigned char* const name = emu::dynamic_smem()
#define PTX_WHERE , EMU_HERE  // a defaulted argument that carries the caller's file and line
#endif

namespace ptx {

#ifdef __CUDACC__
__device__ __forceinline__ uint32_t smem_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
#endif

// Copies 16 bytes from global to shared memory; with `valid` false writes zeros and reads nothing.
// `src` must be a valid address either way.
__device__ __forceinline__ void cp_async_16(void* dst, const void* src, bool valid PTX_WHERE) {
#ifdef __CUDACC__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(smem_address(dst)), "l"(src),
               "r"(valid ? 16 : 0)
               : "memory");
#else
  emu::cp_async(dst, src, 16, valid ? 16 : 0, emu_where);
#endif
}
// The same for 8 and 4 bytes (these go through the L1 cache).
template <int Bytes>
__device__ __forceinline__ void cp_async_small(void* dst, const void* src, bool valid PTX_WHERE) {
  static_assert(Bytes == 4 || Bytes == 8, "");
#ifdef __CUDACC__
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;\n" ::"r"(smem_address(dst)), "l"(src), "n"(Bytes),
               "r"(valid ? Bytes : 0)
               : "memory");
#else
  emu::cp_async(dst, src, Bytes, valid ? Bytes : 0, emu_where);
#endif
}
__device__ __forceinline__ void cp_async_commit() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#else
  emu::cp_async_commit();
#endif
}
// Waits until at most `Pending` of this thread's committed groups are in flight.
template <int Pending>
__device__ __forceinline__ void cp_async_wait() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
#else
  emu::cp_async_wait(Pending);
#endif
}

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l%8 of matrix l/8.
template <bool Trans>
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row PTX_WHERE) {
#ifdef __CUDACC__
  if constexpr (Trans)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_address(row)) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_address(row)) : "memory");
#else
  emu::ldmatrix<4, Trans>(r, row, emu_where);
#endif
}
template <bool Trans>
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row PTX_WHERE) {
#ifdef __CUDACC__
  if constexpr (Trans)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(smem_address(row)) : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(smem_address(row)) : "memory");
#else
  emu::ldmatrix<2, Trans>(r, row, emu_where);
#endif
}

template <class T> struct IsHalf { static constexpr bool value = false; };
template <> struct IsHalf<__half> { static constexpr bool value = true; };

// D += A B for one warp: A 16x16 row-major, B 16x8 column-major, T is __half or __nv_bfloat16.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2] PTX_WHERE) {
#ifdef __CUDACC__
  if constexpr (IsHalf<T>::value)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emu::mma<T>(d, a, b, emu_where);
#endif
}

// D += A B for one warp: A 16x32 row-major, B 32x8 column-major, E4M3 elements. From sm_89 on; never reached below.
__device__ __forceinline__ void mma_m16n8k32_e4m3(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2] PTX_WHERE) {
#ifdef __CUDACC__
#if __CUDA_ARCH__ >= 890
  asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
#else
  emu::mma_bytes<float>(d, a, b, emu::e4m3_value, emu_where);
#endif
}
// The same with int8 elements and int32 sums.
__device__ __forceinline__ void mma_m16n8k32_s8(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] PTX_WHERE) {
#ifdef __CUDACC__
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emu::mma_bytes<int>(d, a, b, [](uint8_t code) { return int(int8_t(code)); }, emu_where);
#endif
}

// 2^x to 2 ulp in one instruction; 0 where the result would be below 2^-126.
__device__ __forceinline__ float exp2(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
#else
  return x < -126.f ? 0.f : ::exp2f(x);
#endif
}

// A value that the compiler may not look through: keeps it from precomputing addresses into many registers.
template <class I>
__device__ __forceinline__ I opaque(I x) {
#ifdef __CUDACC__
  if constexpr (sizeof(I) == 8) asm volatile("" : "+l"(x));
  else asm volatile("" : "+r"(x));
#endif
  return x;
}

// Debug builds and the emulator stop with these words unless `condition`; release builds do not look.
__device__ __forceinline__ void device_check(bool condition, const char* words PTX_WHERE) {
#ifdef __CUDACC__
#ifdef SLIPWAY_DEBUG
  if (!condition) {
    printf("slipway: %s (block %d,%d,%d thread %d)\n", words, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
    __trap();
  }
#else
  (void)condition, (void)words;
#endif
#else
  if (!condition) emu::fail(words, emu_where);
#endif
}

// Two floats to a register of two T, the first in the low half.
template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (IsHalf<T>::value) return __float2half_rn(x);
  else return __float2bfloat16_rn(x);
}
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
__device__ __forceinline__ uint32_t pack(float lo, float hi) {
#ifdef __CUDACC__
  if constexpr (IsHalf<T>::value) {
    __half2 p = __floats2half2_rn(lo, hi);
    return *reinterpret_cast<uint32_t*>(&p);
  } else {
    __nv_bfloat162 p = __floats2bfloat162_rn(lo, hi);
    return *reinterpret_cast<uint32_t*>(&p);
  }
#else
  return from_float<T>(lo).bits | uint32_t(from_float<T>(hi).bits) << 16;
#endif
}

// Starts a kernel; on the device `stream` is the CUDA stream, the emulator runs at once.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem_bytes, void* stream, A... args) {
#ifdef __CUDACC__
  cudaError_t code = cudaSuccess;
  if (smem_bytes > 48 << 10)
    code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(smem_bytes));
  if (code == cudaSuccess) {
    kernel<<<grid, block, smem_bytes, static_cast<cudaStream_t>(stream)>>>(args...);
    code = cudaGetLastError();
  }
  if (code != cudaSuccess) throw slipway::CudaError(std::string("launch: ") + cudaGetErrorString(code));
#else
  (void)stream;
  emu::launch(kernel, grid, block, smem_bytes, args...);
#endif
}
}  // namespace ptx
