// Conversions of single elements of pools, rounding to nearest even; bit-exact on every processor.
#pragma once

#include <cstdint>
#include <cstring>

#include "paged_attention.h"

namespace slipway::cpu {
namespace {

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

inline float to_float(float x) { return x; }

inline float to_float(BFloat16 x) { return float_of(uint32_t(x.bits) << 16); }

inline float to_float(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t magnitude = uint32_t(x.bits & 0x7FFF) << 13;
  // The exponent is too small by 112; infinity and NaN by another 112; the product normalizes subnormals.
  const uint32_t rebased = magnitude + (magnitude >= 0x0F800000u ? (224u << 23) : (112u << 23));
  if (magnitude < 0x00800000u) {
    return float_of(bits_of(float(x.bits & 0x7FFF) * 0x1p-24f) | sign);
  }
  return float_of(rebased | sign);
}

inline float to_float(Int8 x) { return float(x.code); }

// The bits of a half that is 2^-8 times the number: E4M3's exponent has a bias of 7, a half's of 15. Codes of NaN give
// 0x3F80, which no other does.
inline uint16_t half_bits(E4m3 x) { return uint16_t(((x.code & 0x80) << 8) | ((x.code & 0x7F) << 7)); }

inline float to_float(E4m3 x) {
  if ((x.code & 0x7F) == 0x7F) return float_of(0x7FC00000u | uint32_t(x.code & 0x80) << 24);
  return to_float(Half{half_bits(x)}) * 256.0f;
}

inline void from_float(float x, float* out) { *out = x; }

// -127 to 127. Adding and taking away 1.5 * 2^23 leaves no bit behind the point. NaN becomes -127.
inline void from_float(float x, Int8* out) {
  const float bounded = x > -127.0f ? (x < 127.0f ? x : 127.0f) : -127.0f;
  volatile const float shifted = bounded + 12582912.0f;
  out->code = int8_t(int(shifted - 12582912.0f));
}

// Up to 448, as TensorRT's rounding to FP8; what is larger, infinity too, becomes 448. NaN stays NaN.
inline void from_float(float x, E4m3* out) {
  const uint32_t bits = bits_of(x);
  const uint8_t sign = uint8_t(bits >> 24 & 0x80);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  uint32_t code;
  if (magnitude > 0x7F800000u) {
    code = 0x7F;
  } else if (magnitude >= 0x43E00000u) {
    code = 0x7E;                          // 448
  } else if (magnitude >= 0x3C800000u) {  // a normal code: 2^-6 and more
    code = (magnitude + 0x7FFFFu + ((magnitude >> 20) & 1) - 0x3C000000u) >> 20;
  } else {
    // Subnormal: adding 2^14 aligns the last kept bit, 2^-9, with the last bit of the sum, which rounds it.
    code = bits_of(float_of(magnitude) + 16384.0f) - bits_of(16384.0f);
  }
  out->code = uint8_t(code | sign);
}

inline void from_float(float x, BFloat16* out) {
  const uint32_t bits = bits_of(x);
  const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  out->bits = is_nan ? uint16_t((bits >> 16) | 0x40) : uint16_t((bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16);
}

inline void from_float(float x, Half* out) {
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  uint32_t half;
  if (magnitude > 0x7F800000u) {
    half = 0x7E00;  // NaN
  } else if (magnitude >= 0x477FF000u) {
    half = 0x7C00;                        // rounds to infinity
  } else if (magnitude >= 0x38800000u) {  // a normal half
    half = (magnitude + 0xFFFu + ((magnitude >> 13) & 1) - 0x38000000u) >> 13;
  } else {
    // Subnormal: adding 0.5 aligns the last kept bit with the last bit of the sum, which rounds it.
    half = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  }
  out->bits = uint16_t(half | sign);
}

}  // namespace
}  // namespace slipway::cpu
