// Integer dot products of 16 columns: AVX-512 VNNI multiplies four pairs of bytes a lane and adds them in one step.
#pragma once

#include <cstring>

#include "quantized.h"
#include "simd_avx512.h"

namespace slipway::cpu {

struct VnniDot {
  using S = Avx512;
  using Code = int8_t;
  using Sums = __m512i;
  using Weights = __m512i;
  static constexpr int kRows = 6, kBlocks = 4;

  static Sums start(int32_t value) { return _mm512_set1_epi32(value); }
  static Weights load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void load_nibbles(const uint8_t* p, Weights* low, Weights* high) {
    const __m512i bytes = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
    *low = _mm512_and_si512(bytes, mask);
    *high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask);
  }
  static void add(Sums& sums, const Weights& weights, const Code* four) {
    // Written out: GCC copies the accumulators around its own intrinsic.
    asm("vpdpbusd %2%{1to16%}, %1, %0"
        : "+v"(sums)
        : "v"(weights), "m"(*reinterpret_cast<const int32_t*>(four)));
  }
  static void to_float(const Sums& sums, S::V* out) { out[0] = _mm512_cvtepi32_ps(sums); }
};

}  // namespace slipway::cpu
