// __half (IEEE binary16) and __nv_bfloat16, as bits; conversions round to nearest even.
#pragma once
#include <cstdint>
#include <cstring>

#include "language.hpp"

struct __half { uint16_t bits; };
struct __nv_bfloat16 { uint16_t bits; };
struct alignas(4) __half2 { __half x, y; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };

EMU_FAST inline float __half2float(__half h) { return float(emu::bit_cast<_Float16>(h)); }
EMU_FAST inline __half __float2half_rn(float f) { return emu::bit_cast<__half>(_Float16(f)); }
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
