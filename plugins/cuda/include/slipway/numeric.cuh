// The number formats of tensors on the device: conversion to and from float, packing, vectors of 16 bytes.
//
// float, __half, __nv_bfloat16, e4m3 (1 sign, 4 exponent, 3 mantissa bits, bias 7, no infinity; arXiv 2209.05433) and
// int8_t. Everything rounds to nearest even; e4m3 saturates at 448 and keeps NaN (0x7f), int8 is clamped to -127..127
// and NaN becomes 0. Kernels that dequantize in their inner loop find faster ways in dequantize.cuh.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "slipway/ptx.cuh"

namespace slipway {

struct e4m3 {
  uint8_t bits;
};

// One rounding each, never fused with a neighbour: the same bits from every compiler.
__device__ __forceinline__ float multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float add(float a, float b) { return __fadd_rn(a, b); }

// ---- e4m3 on every chip, without the instructions of sm_89 --------------------------------------------
__device__ __forceinline__ uint32_t e4m3_by_bits(float x) {
  const uint32_t sign = __float_as_uint(x) >> 24 & 0x80, magnitude = __float_as_uint(x) & 0x7fffffffu;
  uint32_t code;
  if (magnitude < 0x3c800000u)  // below 2^-6: a sum with 2^14 rounds to a multiple of 2^-9, the least e4m3
    code = __float_as_uint(add(__uint_as_float(magnitude), 16384.0f)) - __float_as_uint(16384.0f);
  else if (magnitude < 0x43e00000u)  // below 448: 20 bits of mantissa are rounded off, the bias goes from 127 to 7
    code = (magnitude + 0x7ffffu + (magnitude >> 20 & 1) - (120u << 23)) >> 20;
  else
    code = magnitude > 0x7f800000u ? 0x7f : 0x7e;
  return magnitude > 0x7f800000u ? 0x7f : sign | code;
}
// Exact: the magnitude's bits, moved to a half's place, are the number times 2^-8.
__device__ __forceinline__ float e4m3_value_by_bits(uint32_t code) {
  const float magnitude = (code & 0x7f) == 0x7f ? __uint_as_float(0x7fffffffu)
                                                : multiply(__uint_as_float((code & 0x7f) << 20), 0x1p120f);
  return code & 0x80 ? -magnitude : magnitude;
}

// ---- one element --------------------------------------------------------------------------------------
__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(int8_t x) { return float(x); }
__device__ __forceinline__ float to_float(e4m3 x) {
#if defined(__CUDACC__) && defined(SLIPWAY_HAS_E4M3_INSTRUCTIONS)
  const uint32_t halves = ptx::halves_of_e4m3x2(x.bits);
  return __half2float(__ushort_as_half(uint16_t(halves)));
#else
  return e4m3_value_by_bits(x.bits);
#endif
}

__device__ __forceinline__ int8_t to_int8(float x) { return int8_t(max(-127, min(127, __float2int_rn(x)))); }

template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same<T, float>::value) {
    return x;
  } else if constexpr (std::is_same<T, __half>::value) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same<T, __nv_bfloat16>::value) {
    return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same<T, int8_t>::value) {
    return to_int8(x);
  } else {
    static_assert(std::is_same<T, e4m3>::value, "float, __half, __nv_bfloat16, int8_t or e4m3");
#if defined(__CUDACC__) && defined(SLIPWAY_HAS_E4M3_INSTRUCTIONS)
    return e4m3{uint8_t(ptx::e4m3x2_of(x, 0.0f))};
#else
    return e4m3{uint8_t(e4m3_by_bits(x))};
#endif
  }
}

// ---- registers of several elements, the first in the lowest bits ---------------------------------------
// Two T, __half or __nv_bfloat16.
template <class T>
__device__ __forceinline__ uint32_t pack(float lo, float hi) {
#ifdef __CUDACC__
  if constexpr (std::is_same<T, __half>::value) return ptx::as_register(__floats2half2_rn(lo, hi));
  else return ptx::as_register(__floats2bfloat162_rn(lo, hi));
#else
  return from_float<T>(lo).bits | uint32_t(from_float<T>(hi).bits) << 16;
#endif
}
template <class T>
__device__ __forceinline__ float2 unpack(uint32_t x) {
#ifdef __CUDACC__
  if constexpr (std::is_same<T, __half>::value) return __half22float2(ptx::as_pair<T>(x));
  else return {__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)};
#else
  return {emu::part<T>(x, 0), emu::part<T>(x, 1)};
#endif
}
__device__ __forceinline__ uint32_t pack_e4m3(float x0, float x1, float x2, float x3) {
#if defined(__CUDACC__) && defined(SLIPWAY_HAS_E4M3_INSTRUCTIONS)
  return ptx::e4m3x2_of(x0, x1) | uint32_t(ptx::e4m3x2_of(x2, x3)) << 16;
#else
  return e4m3_by_bits(x0) | e4m3_by_bits(x1) << 8 | e4m3_by_bits(x2) << 16 | e4m3_by_bits(x3) << 24;
#endif
}
__device__ __forceinline__ uint32_t pack_int8(float x0, float x1, float x2, float x3) {
  const uint32_t lo = ptx::prmt(uint32_t(to_int8(x0)), uint32_t(to_int8(x1)), 0x0040);
  return ptx::prmt(lo, ptx::prmt(uint32_t(to_int8(x2)), uint32_t(to_int8(x3)), 0x0040), 0x5410);
}

// ---- N elements that are loaded and stored by accesses of up to 16 bytes --------------------------------
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vector {
  static constexpr int kCount = N, kBytes = int(sizeof(T)) * N;
  static_assert(kBytes == 1 || kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes % 16 == 0, "no such access");
  using Narrow = std::conditional_t<kBytes == 2, uint16_t, uint8_t>;
  using Access = std::conditional_t<kBytes % 16 == 0, uint4,
                                    std::conditional_t<kBytes == 8, uint2,
                                                       std::conditional_t<kBytes == 4, uint32_t, Narrow>>>;
  static constexpr int kAccesses = kBytes / int(sizeof(Access));
  T x[N];

  __device__ __forceinline__ T& operator[](int i) { return x[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return x[i]; }

  // p: aligned to the access (16 bytes, or the vector's size if that is less).
  __device__ static __forceinline__ Vector load(const T* p) {
    return assembled([&](int i) { return reinterpret_cast<const Access*>(p)[i]; });
  }
  // Of what is read once and not written while the kernel runs. Vectors of 4 bytes and more.
  __device__ static __forceinline__ Vector load_once(const T* p) {
    return assembled([&](int i) { return ptx::load_once(reinterpret_cast<const Access*>(p) + i); });
  }
  __device__ __forceinline__ void store(T* p) const {
#pragma unroll
    for (int i = 0; i < kAccesses; i++) {
      Access part;
      memcpy(&part, reinterpret_cast<const char*>(x) + i * sizeof(Access), sizeof(Access));
      reinterpret_cast<Access*>(p)[i] = part;
    }
  }

 private:
  template <class Read>
  __device__ static __forceinline__ Vector assembled(Read read) {
    Vector v;
#pragma unroll
    for (int i = 0; i < kAccesses; i++) {
      const Access part = read(i);
      memcpy(reinterpret_cast<char*>(v.x) + i * sizeof(Access), &part, sizeof(Access));
    }
    return v;
  }
};

}  // namespace slipway

namespace ptx {  // kernels may say either
using slipway::from_float;
using slipway::pack;
using slipway::to_float;
}  // namespace ptx
