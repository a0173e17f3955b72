// __half (IEEE binary16) and __nv_bfloat16, as bits; conversions round to nearest even.
#pragma once
#include <cstdint>
#include <cstring>

#include "language.hpp"

struct __half { uint16_t bits; };
struct __nv_bfloat16 { uint16_t bits; };
struct alignas(4) __half2 { __half x, y; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };

// By hand, because without F16C the compiler's own conversions take half of the time of a matrix product.
EMU_FAST inline float __half2float(__half h) {
  const uint32_t sign = uint32_t(h.bits & 0x8000) << 16, magnitude = uint32_t(h.bits & 0x7fff) << 13;
  const uint32_t exponent = magnitude >> 23;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000 | magnitude);                  // infinity, NaN
  if (exponent != 0) return __uint_as_float(sign | (magnitude + (112u << 23)));               // bias 15 to 127
  const float subnormal = __uint_as_float(magnitude | 113u << 23) - __uint_as_float(113u << 23);  // 113: 2^-14
  return __uint_as_float(sign | __float_as_uint(subnormal));
}
EMU_FAST inline __half __float2half_rn(float f) {
  const uint32_t u = __float_as_uint(f), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffff;
  if (magnitude > 0x7f800000) return {0x7fff};
  if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // 65520 and more round to infinity
  if (magnitude < 0x38800000)  // below 2^-14: a sum with 0.5 rounds to a multiple of 2^-24
    return {uint16_t(sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - __float_as_uint(0.5f)))};
  return {uint16_t(sign | (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13)};
}
EMU_FAST inline __half __float2half(float f) { return __float2half_rn(f); }
EMU_FAST inline float __bfloat162float(__nv_bfloat16 h) { return __uint_as_float(uint32_t(h.bits) << 16); }
EMU_FAST inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  const uint32_t u = __float_as_uint(f);
  if (f != f) return {0x7fff};
  return {uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
EMU_FAST inline __nv_bfloat16 __float2bfloat16(float f) { return __float2bfloat16_rn(f); }

EMU_FAST inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
EMU_FAST inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}
EMU_FAST inline float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }
EMU_FAST inline float2 __bfloat1622float2(__nv_bfloat162 h) { return {__bfloat162float(h.x), __bfloat162float(h.y)}; }

namespace emu {

EMU_FAST inline float widened(__half h) { return __half2float(h); }
EMU_FAST inline float widened(__nv_bfloat16 h) { return __bfloat162float(h); }
EMU_FAST inline float widened(float x) { return x; }

// Rounds a double once to T: to odd at the precision of float first, which keeps what decides the second rounding
// (Boldo and Melquiond, "When double rounding is odd", 2005).
template <class T>
EMU_FAST T narrowed(double x) {
  float f = float(x);
  if (double(f) != x && f == f && std::fabs(f) < INFINITY) {
    uint32_t u = __float_as_uint(f);
    if (std::fabs(double(f)) > std::fabs(x)) u--;  // towards zero
    f = __uint_as_float(u | 1);
  }
  if constexpr (sizeof(T) == 4) return float(x);
  else if constexpr (std::is_same_v<T, __half>) return __float2half_rn(f);
  else return __float2bfloat16_rn(f);
}

// Element `i` of a register of two.
template <class T>
EMU_FAST float part(uint32_t reg, int i) { return widened(T{uint16_t(reg >> 16 * i)}); }
template <class T>
EMU_FAST uint32_t paired(double lo, double hi) { return narrowed<T>(lo).bits | uint32_t(narrowed<T>(hi).bits) << 16; }

}  // namespace emu
