// Arithmetic of one thread that C++ has no name for: approximate functions, bit tricks, pairs of 16-bit numbers.
#pragma once
#include <type_traits>

#include "slipway/platform.cuh"

namespace ptx {

// 2^x; subnormal results are zero. Relative error at most 2^-22 (PTX ISA, ex2.approx.ftz.f32); here exact.
__device__ __forceinline__ float exp2_approx(float x) {
#ifdef __CUDACC__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
#else
  const float y = std::exp2(x);
  return std::fabs(y) < 1.17549435e-38f ? 0.0f : y;
#endif
}
__device__ __forceinline__ float exp2(float x) { return exp2_approx(x); }
// Relative error at most 2^-11 (tanh.approx.f32): good for 16-bit results only.
__device__ __forceinline__ float tanh_approx(float x) {
#ifdef __CUDACC__
  float y;
  asm("tanh.approx.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
#else
  return std::tanh(x);
#endif
}

// Keeps the compiler from knowing a value, and so from keeping what is made of it in registers over a loop.
__device__ __forceinline__ int32_t opaque(int32_t x) {
#ifdef __CUDACC__
  asm volatile("" : "+r"(x));
#endif
  return x;
}
__device__ __forceinline__ int64_t opaque(int64_t x) {
#ifdef __CUDACC__
  asm volatile("" : "+l"(x));
#endif
  return x;
}
__device__ __forceinline__ float opaque(float x) {
#ifdef __CUDACC__
  asm volatile("" : "+f"(x));
#endif
  return x;
}

// threadIdx.x, where what is made of it is not worth a register until its next use.
__device__ __forceinline__ int fresh_thread() { return opaque(int(threadIdx.x)); }

// Any function of three bits, for all bits at once: bit i of Table is its value where (a, b, c) spell i.
template <int Table>
__device__ __forceinline__ uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r = 0;
#ifdef __CUDACC__
  asm("lop3.b32 %0, %1, %2, %3, %4;\n" : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(Table));
#else
  for (int i = 0; i < 8; i++)
    if (Table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
#endif
  return r;
}
constexpr int kAndOr = (0xf0 & 0xcc) | 0xaa;  // lop3: (a & b) | c
constexpr int kOr = 0xf0 | 0xcc | 0xaa;       // lop3: a | b | c

// Four bytes of the eight of (b, a), a's being 0 to 3: nibble i of the selector names byte i of the result.
__device__ __forceinline__ uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}

// Registers of two T, __half or __nv_bfloat16, the first in the low half; each result is rounded once.
#ifdef __CUDACC__
template <class T>
using Pair = typename std::conditional<IsHalf<T>::value, __half2, __nv_bfloat162>::type;
template <class T>
__device__ __forceinline__ Pair<T> as_pair(uint32_t x) {
  return *reinterpret_cast<Pair<T>*>(&x);
}
template <class P>
__device__ __forceinline__ uint32_t as_register(P x) {
  return *reinterpret_cast<uint32_t*>(&x);
}
#define SLIPWAY_PAIRED(cuda, host) return as_register(cuda)
#else
#define SLIPWAY_PAIRED(cuda, host)                                            \
  const auto of = [&](int i) { return double(host); };                        \
  return emu::paired<T>(of(0), of(1))
#endif
template <class T>
__device__ __forceinline__ uint32_t multiply2(uint32_t a, uint32_t b) {
  SLIPWAY_PAIRED(__hmul2(as_pair<T>(a), as_pair<T>(b)), double(emu::part<T>(a, i)) * emu::part<T>(b, i));
}
template <class T>
__device__ __forceinline__ uint32_t subtract2(uint32_t a, uint32_t b) {
  SLIPWAY_PAIRED(__hsub2(as_pair<T>(a), as_pair<T>(b)), double(emu::part<T>(a, i)) - emu::part<T>(b, i));
}
template <class T>
__device__ __forceinline__ uint32_t add2(uint32_t a, uint32_t b) {
  SLIPWAY_PAIRED(__hadd2(as_pair<T>(a), as_pair<T>(b)), double(emu::part<T>(a, i)) + emu::part<T>(b, i));
}
// a * b + c
template <class T>
__device__ __forceinline__ uint32_t fma2(uint32_t a, uint32_t b, uint32_t c) {
  SLIPWAY_PAIRED(__hfma2(as_pair<T>(a), as_pair<T>(b), as_pair<T>(c)),
                 double(emu::part<T>(a, i)) * emu::part<T>(b, i) + emu::part<T>(c, i));
}
#undef SLIPWAY_PAIRED
// All ones where a > b, else zeros.
template <class T>
__device__ __forceinline__ uint32_t greater2(uint32_t a, uint32_t b) {
#ifdef __CUDACC__
  return __hgt2_mask(as_pair<T>(a), as_pair<T>(b));
#else
  return (emu::part<T>(a, 0) > emu::part<T>(b, 0) ? 0xffffu : 0u) |
         (emu::part<T>(a, 1) > emu::part<T>(b, 1) ? 0xffff0000u : 0u);
#endif
}

// E4M3 by the instructions of sm_89 and later; numeric.cuh has the forms for all chips.
#if !defined(__CUDACC__) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890)
#define SLIPWAY_HAS_E4M3_INSTRUCTIONS 1
#endif
#if defined(__CUDACC__) && defined(SLIPWAY_HAS_E4M3_INSTRUCTIONS)
// Rounded to nearest even, saturated; `lo` goes to the low byte.
__device__ __forceinline__ uint16_t e4m3x2_of(float lo, float hi) {
  uint16_t r;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;\n" : "=h"(r) : "f"(hi), "f"(lo));
  return r;
}
// Two halves; exact.
__device__ __forceinline__ uint32_t halves_of_e4m3x2(uint16_t x) {
  uint32_t r;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;\n" : "=r"(r) : "h"(x));
  return r;
}
#endif

}  // namespace ptx
