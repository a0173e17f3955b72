// wgmma: D (+)= A B by a warpgroup, M = 64, asynchronously (PTX ISA, "Asynchronous Warpgroup Level Matrix
// Multiply-Accumulate"). One k step is 32 bytes of a row: 16 elements of 16 bits or 32 of E4M3.
//
// d[N / 8][4]: of the warp's 16 rows, lane l holds row l / 4 in elements 0 and 1 and row l / 4 + 8 in 2 and
// 3, columns l % 4 * 2 and the next one of each eight: the layout of mma.m16n8k16, which A in registers has
// too.
//
// Order of use: wgmma_fence(); products; wgmma_commit(); wgmma_wait<n>(). Between its product and the wait,
// registers of d and of a may not be touched; hold_registers() keeps the compiler from moving their uses over
// these calls.
#pragma once
#include "slipway/ptx_matrix.cuh"
#include "slipway/ptx_sm90.cuh"

namespace ptx {

// ---- descriptors

// An operand in shared memory, in tiles that TMA wrote with the 128-byte swizzle: rows of 128 bytes, 8 rows
// (1024 bytes, the alignment) to a pattern. PTX ISA, "Matrix Descriptor Format".
//
// K-major (a row holds elements of k): stride is from 8 rows to the next 8; a k step adds 32 bytes to the
// start. Otherwise (a row holds one k, 64 elements of M or N): leading is from 64 columns to the next 64,
// stride from 8 k to the next 8; a k step adds 2 * stride.
enum class Swizzle : int { kNone = 0, k128 = 1, k64 = 2, k32 = 3 };
__device__ __forceinline__ uint64_t matrix_descriptor(const void* start, uint32_t leading_bytes,
                                                      uint32_t stride_bytes, Swizzle swizzle PTX_WHERE) {
#ifdef __CUDACC__
  const uint32_t address = smem_address(start);
#else
  const uint32_t address = emu::sm90::shared_address(start, emu_where);
#endif
  return uint64_t(address >> 4 & 0x3fff) | uint64_t(leading_bytes >> 4 & 0x3fff) << 16 |
         uint64_t(stride_bytes >> 4 & 0x3fff) << 32 | uint64_t(swizzle) << 62;
}
// The same further on by so many bytes.
__device__ __forceinline__ constexpr uint64_t advanced(uint64_t descriptor, int bytes) {
  return descriptor + uint64_t(bytes >> 4);
}

// ---- order

__device__ __forceinline__ void wgmma_fence() {
#ifdef __CUDACC__
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#else
  emu::sm90::wgmma_fence();
#endif
}
__device__ __forceinline__ void wgmma_commit() {
#ifdef __CUDACC__
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
#else
  emu::sm90::wgmma_commit();
#endif
}
// Waits until at most `Pending` of this warp's groups are under way.
template <int Pending>
__device__ __forceinline__ void wgmma_wait(PTX_WHERE_ONLY) {
#ifdef __CUDACC__
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(Pending) : "memory");
#else
  emu::sm90::wgmma_wait(Pending, emu_where);
#endif
}
template <int Blocks>
__device__ __forceinline__ void hold_registers(float (&d)[Blocks][4]) {
#ifdef __CUDACC__
#pragma unroll
  for (int i = 0; i < Blocks; i++)
    asm volatile("" : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])::"memory");
#else
  (void)d;
#endif
}
template <int Steps>
__device__ __forceinline__ void hold_registers(uint32_t (&a)[Steps][4]) {
#ifdef __CUDACC__
#pragma unroll
  for (int i = 0; i < Steps; i++)
    asm volatile("" : "+r"(a[i][0]), "+r"(a[i][1]), "+r"(a[i][2]), "+r"(a[i][3])::"memory");
#else
  (void)a;
#endif
}

// ---- products

#ifdef __CUDACC__
// Lists of operands: the numbers of N / 2 accumulators, and the accumulators themselves.

#define WGMMA_D64                                                          \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_D80 WGMMA_D64 \
  ", %32, %33, %34, %35, %36, %37, %38, %39"
#define WGMMA_D96 WGMMA_D80 \
  ", %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_D112 WGMMA_D96 \
  ", %48, %49, %50, %51, %52, %53, %54, %55"
#define WGMMA_D128 WGMMA_D112 \
  ", %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_D160 WGMMA_D128 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_D256 WGMMA_D160 \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_R1(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define WGMMA_R4(d, i) WGMMA_R1(d, i), WGMMA_R1(d, i + 1), WGMMA_R1(d, i + 2), WGMMA_R1(d, i + 3)
#define WGMMA_R64(d) WGMMA_R4(d, 0), WGMMA_R4(d, 4)
#define WGMMA_R80(d) WGMMA_R64(d), WGMMA_R1(d, 8), WGMMA_R1(d, 9)
#define WGMMA_R96(d) WGMMA_R80(d), WGMMA_R1(d, 10), WGMMA_R1(d, 11)
#define WGMMA_R112(d) WGMMA_R96(d), WGMMA_R1(d, 12), WGMMA_R1(d, 13)
#define WGMMA_R128(d) WGMMA_R112(d), WGMMA_R1(d, 14), WGMMA_R1(d, 15)
#define WGMMA_R160(d) WGMMA_R128(d), WGMMA_R4(d, 16)
#define WGMMA_R256(d) WGMMA_R160(d), WGMMA_R4(d, 20), WGMMA_R4(d, 24), WGMMA_R4(d, 28)

// One instruction: n columns, the numbers of the operands after the accumulators, k step, types,
// transpositions.
#define WGMMA_SHARED(n, ia, ib, ip, step, type, transposed)                                               \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #ip ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n step \
               ".f32." type "." type " {" WGMMA_D##n "}, %" #ia ", %" #ib ", p, 1, 1" transposed ";\n}\n" \
               : WGMMA_R##n(d)                                                                            \
               : "l"(a), "l"(b), "r"(int(accumulate)))
#define WGMMA_REGISTERS(n, i0, i1, i2, i3, ib, ip, step, type, transposed)                                \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #ip ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n step \
               ".f32." type "." type " {" WGMMA_D##n "}, {%" #i0 ", %" #i1 ", %" #i2 ", %" #i3 "}, %" #ib \
                                                     ", p, 1, 1" transposed ";\n}\n"                      \
               : WGMMA_R##n(d)                                                                            \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)))
// All element types and both layouts of B.
#define WGMMA_FORMS(product, n, none, b_as_stored, b_transposed, ...) \
  if constexpr (N == n) {                                             \
    if constexpr (sizeof(T) == 1)                                     \
      product(n, __VA_ARGS__, "k32", "e4m3", none);                   \
    else if constexpr (std::is_same<T, __half>::value && TransposedB) \
      product(n, __VA_ARGS__, "k16", "f16", b_transposed);            \
    else if constexpr (std::is_same<T, __half>::value)                \
      product(n, __VA_ARGS__, "k16", "f16", b_as_stored);             \
    else if constexpr (TransposedB)                                   \
      product(n, __VA_ARGS__, "k16", "bf16", b_transposed);           \
    else                                                              \
      product(n, __VA_ARGS__, "k16", "bf16", b_as_stored);            \
  }
#else
template <class T>
constexpr emu::sm90::Element kElement = sizeof(T) == 1 ? emu::sm90::Element::kE4M3
                                        : std::is_same<T, __half>::value ? emu::sm90::Element::kHalf
                                                                         : emu::sm90::Element::kBFloat16;
#endif
template <int N>
constexpr bool kHasWgmma =
    N == 64 || N == 80 || N == 96 || N == 112 || N == 128 || N == 160 || N == 256;

// d = A B, or d += A B, for one k step; A and B in shared memory, A K-major.
template <class T, int N, bool TransposedB>
__device__ __forceinline__ void wgmma(float (&d)[N / 8][4], uint64_t a, uint64_t b,
                                      bool accumulate PTX_WHERE) {
  static_assert(kHasWgmma<N> && !(sizeof(T) == 1 && TransposedB), "a shape without an instruction here");
#ifdef __CUDACC__
  WGMMA_FORMS(WGMMA_SHARED, 64, "", ", 0, 0", ", 0, 1", 32, 33, 34)
  WGMMA_FORMS(WGMMA_SHARED, 80, "", ", 0, 0", ", 0, 1", 40, 41, 42)
  WGMMA_FORMS(WGMMA_SHARED, 96, "", ", 0, 0", ", 0, 1", 48, 49, 50)
  WGMMA_FORMS(WGMMA_SHARED, 112, "", ", 0, 0", ", 0, 1", 56, 57, 58)
  WGMMA_FORMS(WGMMA_SHARED, 128, "", ", 0, 0", ", 0, 1", 64, 65, 66)
  WGMMA_FORMS(WGMMA_SHARED, 160, "", ", 0, 0", ", 0, 1", 80, 81, 82)
  WGMMA_FORMS(WGMMA_SHARED, 256, "", ", 0, 0", ", 0, 1", 128, 129, 130)
#else
  emu::sm90::wgmma(kElement<T>, N, d[0], nullptr, a, false, b, TransposedB, accumulate, emu_where);
#endif
}
// The same with A in registers.
template <class T, int N, bool TransposedB>
__device__ __forceinline__ void wgmma(float (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b,
                                      bool accumulate PTX_WHERE) {
  static_assert(kHasWgmma<N> && !(sizeof(T) == 1 && TransposedB), "a shape without an instruction here");
#ifdef __CUDACC__
  WGMMA_FORMS(WGMMA_REGISTERS, 64, "", ", 0", ", 1", 32, 33, 34, 35, 36, 37)
  WGMMA_FORMS(WGMMA_REGISTERS, 80, "", ", 0", ", 1", 40, 41, 42, 43, 44, 45)
  WGMMA_FORMS(WGMMA_REGISTERS, 96, "", ", 0", ", 1", 48, 49, 50, 51, 52, 53)
  WGMMA_FORMS(WGMMA_REGISTERS, 112, "", ", 0", ", 1", 56, 57, 58, 59, 60, 61)
  WGMMA_FORMS(WGMMA_REGISTERS, 128, "", ", 0", ", 1", 64, 65, 66, 67, 68, 69)
  WGMMA_FORMS(WGMMA_REGISTERS, 160, "", ", 0", ", 1", 80, 81, 82, 83, 84, 85)
  WGMMA_FORMS(WGMMA_REGISTERS, 256, "", ", 0", ", 1", 128, 129, 130, 131, 132, 133)
#else
  emu::sm90::wgmma(kElement<T>, N, d[0], a, 0, false, b, TransposedB, accumulate, emu_where);
#endif
}

}  // namespace ptx
