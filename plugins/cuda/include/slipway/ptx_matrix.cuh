// Tensor cores of sm_80 to sm_89 (and of every later chip): ldmatrix, stmatrix, mma.sync. All lanes of the warp call.
#pragma once
#include <type_traits>

#include "slipway/ptx_memory.cuh"

namespace ptx {

// Four (two, one) 8x8 matrices of 16-bit elements from shared memory; lane l gives the address of row l % 8 of matrix
// l / 8, a multiple of 16 (of lanes beyond the last matrix it is ignored). Lane l receives elements (l / 4,
// l % 4 * 2) and the next one of each matrix; with Trans, of each transposed matrix.
template <bool Trans>
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row PTX_WHERE) {
#ifdef __CUDACC__
  if constexpr (Trans)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_address(row))
                 : "memory");
#else
  emu::ldmatrix<4, Trans>(r, row, emu_where);
#endif
}
template <bool Trans>
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row PTX_WHERE) {
#ifdef __CUDACC__
  if constexpr (Trans)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(smem_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(smem_address(row))
                 : "memory");
#else
  emu::ldmatrix<2, Trans>(r, row, emu_where);
#endif
}
template <bool Trans>
__device__ __forceinline__ void ldmatrix_x1(uint32_t (&r)[1], const void* row PTX_WHERE) {
#ifdef __CUDACC__
  if constexpr (Trans)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];\n"
                 : "=r"(r[0])
                 : "r"(smem_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];\n"
                 : "=r"(r[0])
                 : "r"(smem_address(row))
                 : "memory");
#else
  emu::ldmatrix<1, Trans>(r, row, emu_where);
#endif
}

// The same towards shared memory. sm_90 and later; on others it traps.
template <bool Trans>
__device__ __forceinline__ void stmatrix_x4(void* row, const uint32_t (&r)[4] PTX_WHERE) {
#ifndef __CUDACC__
  emu::stmatrix<4, Trans>(row, r, emu_where);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (Trans)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(smem_address(row)),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
  else
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(smem_address(row)),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
#else
  __trap();
#endif
}
template <bool Trans>
__device__ __forceinline__ void stmatrix_x2(void* row, const uint32_t (&r)[2] PTX_WHERE) {
#ifndef __CUDACC__
  emu::stmatrix<2, Trans>(row, r, emu_where);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if constexpr (Trans)
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};\n" ::"r"(smem_address(row)), "r"(r[0]),
                 "r"(r[1])
                 : "memory");
  else
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1,%2};\n" ::"r"(smem_address(row)), "r"(r[0]),
                 "r"(r[1])
                 : "memory");
#else
  __trap();
#endif
}

// Products of one warp, d += a b, with a 16 x K row-major and b K x 8 column-major. Fragments, with g = lane / 4, t =
// lane % 4 and P = K / 8 elements to a register, lowest first: a[0] is row g, columns t * P ..., a[1] row g + 8, a[2]
// and a[3] the same K / 2 columns on; b[0] is column g, rows t * P ..., b[1] the same K / 2 rows on; d[0], d[1] are
// row g, columns 2 * t and 2 * t + 1, d[2], d[3] row g + 8.
#define SLIPWAY_MMA(instruction, constraint)                                                                 \
  asm volatile(instruction " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"                        \
               : constraint(d[0]), constraint(d[1]), constraint(d[2]), constraint(d[3])                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// K = 16; T is __half or __nv_bfloat16.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2] PTX_WHERE) {
#ifdef __CUDACC__
  if constexpr (IsHalf<T>::value)
    SLIPWAY_MMA("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "+f");
  else
    SLIPWAY_MMA("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "+f");
#else
  emu::mma<T>(d, a, b, emu_where);
#endif
}
// K = 8, TF32: floats of which the last 13 bits are ignored.
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2] PTX_WHERE) {
#ifdef __CUDACC__
  SLIPWAY_MMA("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", "+f");
#else
  emu::mma<emu::TF32>(d, a, b, emu_where);
#endif
}
// K = 32, int8, sums in int32 (which wrap).
__device__ __forceinline__ void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4],
                                                const uint32_t (&b)[2] PTX_WHERE) {
#ifdef __CUDACC__
  SLIPWAY_MMA("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", "+r");
#else
  emu::mma<int8_t>(d, a, b, emu_where);
#endif
}
// K = 32, E4M3. sm_89 and later; on others it traps.
__device__ __forceinline__ void mma_m16n8k32_e4m3(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2] PTX_WHERE) {
#ifndef __CUDACC__
  emu::mma<emu::E4M3>(d, a, b, emu_where);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  SLIPWAY_MMA("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32", "+f");
#else
  (void)d, (void)a, (void)b;
  __trap();
#endif
}
#undef SLIPWAY_MMA

}  // namespace ptx
