// Element types on the device: conversions, packing, quantization.
//
// E4M3 is OCP FP8 (1 sign, 4 exponent, 3 mantissa bits, bias 7, largest 448, NaN 0x7f and 0xff, no infinity).
#pragma once
#include <cstdint>

#include "slipway/ptx.cuh"

namespace slipway {

using ptx::from_float;
using ptx::pack;
using ptx::to_float;
using E4M3 = __nv_fp8_e4m3;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(int8_t x) { return float(x); }
template <class T>
__device__ __forceinline__ T convert(float x) {  // from_float, and float itself
  if constexpr (sizeof(T) == 4) return x;
  else return ptx::from_float<T>(x);
}

// `Count` elements that are read and written at once.
template <class T, int Count = 16 / int(sizeof(T))>
struct alignas(sizeof(T) * Count) Vector {
  T at[Count];
};

// ---- E4M3 -----------------------------------------------------------------------------------------------------

// Rounds to nearest even; larger than 448 (infinity too) saturates; NaN stays NaN.
__device__ __forceinline__ uint8_t e4m3_code(float x) {
#ifdef __CUDACC__
  return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
#else
  return emu::e4m3_code(x);
#endif
}
__device__ __forceinline__ float e4m3_value(uint8_t code) {
#ifdef __CUDACC__
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
#else
  return emu::e4m3_value(code);
#endif
}
__device__ __forceinline__ float to_float(E4M3 x) { return e4m3_value(x.__x); }
// Two or four in one register, the first in the lowest byte.
__device__ __forceinline__ uint16_t pack_e4m3(float a, float b) {
#ifdef __CUDACC__
  return __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3);
#else
  return uint16_t(emu::e4m3_code(a) | emu::e4m3_code(b) << 8);
#endif
}
__device__ __forceinline__ uint32_t pack_e4m3(float a, float b, float c, float d) {
  return pack_e4m3(a, b) | uint32_t(pack_e4m3(c, d)) << 16;
}

// ---- int8 -----------------------------------------------------------------------------------------------------

// Rounds to nearest even, within -127 to 127. NaN becomes 0.
__device__ __forceinline__ int8_t int8_code(float x) {
  return x != x ? int8_t(0) : int8_t(__float2int_rn(fminf(fmaxf(x, -127.f), 127.f)));
}

// ---- four bytes to two registers of two T (half or bfloat16), exact, in order ---------------------------------------

template <class T>
__device__ __forceinline__ void expand_int8(uint32_t bytes, uint32_t (&out)[2]) {
  const uint32_t biased = bytes ^ 0x80808080u;  // x + 128, 0 to 255
#ifdef __CUDACC__
  if constexpr (ptx::IsHalf<T>::value) {  // 0x6400 | u is the half 1024 + u
    const __half2 offset = __half2half2(__ushort_as_half(0x6480));
#pragma unroll
    for (int i = 0; i < 2; i++) {
      uint32_t word = __byte_perm(biased, 0x64646464u, i == 0 ? 0x4140 : 0x4342);
      __half2 x = __hsub2(*reinterpret_cast<__half2*>(&word), offset);
      out[i] = *reinterpret_cast<uint32_t*>(&x);
    }
  } else
#endif
#pragma unroll
  for (int i = 0; i < 2; i++) {  // 0x4b000000 | u is the float 2^23 + u
    const float a = __uint_as_float(__byte_perm(biased, 0x4b000000u, i == 0 ? 0x7440 : 0x7442)) - 8388736.f;
    const float b = __uint_as_float(__byte_perm(biased, 0x4b000000u, i == 0 ? 0x7441 : 0x7443)) - 8388736.f;
    out[i] = ptx::pack<T>(a, b);
  }
}

// NaN codes become 480 in magnitude, since nothing that saturates writes them.
template <class T>
__device__ __forceinline__ void expand_e4m3(uint32_t bytes, uint32_t (&out)[2]) {
#ifdef __CUDACC__
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const uint32_t word = __byte_perm(bytes, 0, i == 0 ? 0x1404 : 0x3424);  // a byte in the top half of each 16 bits
    if constexpr (ptx::IsHalf<T>::value) {  // exponent bias 15 instead of 7: times 2^8
      uint32_t bits = (word & 0x80008000u) | (word & 0x7f007f00u) >> 1;
      __half2 x = __hmul2(*reinterpret_cast<__half2*>(&bits), __half2half2(__ushort_as_half(0x5c00)));
      out[i] = *reinterpret_cast<uint32_t*>(&x);
    } else {  // bias 127 instead of 7: times 2^120
      uint32_t bits = (word & 0x80008000u) | (word & 0x7f007f00u) >> 4;
      __nv_bfloat162 x = __hmul2(*reinterpret_cast<__nv_bfloat162*>(&bits),
                                 __bfloat162bfloat162(__ushort_as_bfloat16(0x7b80)));
      out[i] = *reinterpret_cast<uint32_t*>(&x);
    }
  }
#else
  for (int i = 0; i < 2; i++) {
    float x[2];
    for (int j = 0; j < 2; j++) {
      const uint8_t code = uint8_t(bytes >> (16 * i + 8 * j));
      x[j] = (code & 0x7f) == 0x7f ? (code & 0x80 ? -480.f : 480.f) : emu::e4m3_value(code);
    }
    out[i] = ptx::pack<T>(x[0], x[1]);
  }
#endif
}

}  // namespace slipway
