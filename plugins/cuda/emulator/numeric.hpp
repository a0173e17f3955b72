// The 8-bit floating-point format E4M3 by its definition. Included by emulator.hpp.
#pragma once

namespace emu {

EMU_FAST inline float e4m3_value(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float magnitude = exponent == 15 && mantissa == 7 ? NAN
                          : exponent == 0                 ? std::ldexp(float(mantissa), -9)
                                                          : std::ldexp(float(8 + mantissa), exponent - 10);
  return code & 0x80 ? -magnitude : magnitude;
}

// Nearest, ties to the even code; saturating. The codes of positive numbers are in their order.
EMU_FAST inline uint8_t e4m3_code(float x) {
  const uint8_t sign = std::signbit(x) ? 0x80 : 0;
  if (x != x) return sign | 0x7f;
  const float magnitude = std::fabs(x);
  if (magnitude >= 448.f) return sign | 0x7e;
  int low = 0, high = 0x7e;  // e4m3_value(low) <= magnitude < e4m3_value(high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (e4m3_value(uint8_t(middle)) <= magnitude ? low : high) = middle;
  }
  const double below = double(magnitude) - e4m3_value(uint8_t(low)), above = e4m3_value(uint8_t(high)) - double(magnitude);
  return sign | uint8_t(below < above || (below == above && low % 2 == 0) ? low : high);
}

}  // namespace emu
