// Integer dot products of 16 columns: AVX-512 VNNI multiplies four pairs of bytes a lane and adds them in one step.
#pragma once

#include <cstring>

#include "quantized.h"
#include "simd_avx512.h"

namespace slipway::cpu {

// Written out: GCC copies the accumulators around its own intrinsic.
inline __attribute__((always_inline)) void add_dot(__m512i& sums, const __m512i& weights, const void* four) {
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(sums)
      : "v"(weights), "m"(*reinterpret_cast<const int32_t*>(four)));
}

// Wide codes: two sums, of their high and of their low bytes. For each four codes lie four high and four low bytes.
struct VnniWideDot {
  using S = Avx512;
  using Code = int16_t;
  struct Sums {
    __m512i high, low;
  };
  using Weights = __m512i;
  static constexpr int kBlockRows = 4, kBlocks = 2;

  static void store(Code* codes, S::V values) {
    const __m256i packed = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(values));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), packed);
  }
  // code = 256 * high + low with -128 <= low < 128: after adding 128 the upper byte is high, the lower one low + 128.
  static void arrange(Code* codes, int64_t count) {
    const __m512i order = _mm512_set4_epi32(0x0E0C0A08, 0x0F0D0B09, 0x06040200, 0x07050301);
    for (int64_t i = 0; i < count; i += 32) {
      const __mmask32 inside = count - i < 32 ? (uint32_t(1) << (count - i)) - 1 : ~uint32_t(0);
      const __m512i shifted = _mm512_add_epi16(_mm512_maskz_loadu_epi16(inside, codes + i), _mm512_set1_epi16(128));
      const __m512i bytes = _mm512_xor_si512(shifted, _mm512_set1_epi16(128));
      _mm512_mask_storeu_epi16(codes + i, inside, _mm512_shuffle_epi8(bytes, order));
    }
  }
  static Sums start(int32_t value) { return {_mm512_setzero_si512(), _mm512_set1_epi32(value)}; }
  static Weights load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void add(Sums& sums, const Weights& weights, const Code* four) {
    add_dot(sums.high, weights, four);
    add_dot(sums.low, weights, four + 2);
  }
  static void to_float(const Sums& sums, S::V* out) {
    out[0] = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(sums.high, 8), sums.low));
  }
};

struct VnniDot {
  using S = Avx512;
  using Code = int8_t;
  using Wide = VnniWideDot;
  using Sums = __m512i;
  using Weights = __m512i;
  static constexpr int kRows = 6, kBlockRows = 3, kBlocks = 4;

  static void store(Code* codes, S::V values) {
    const __m128i packed = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(values));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), packed);
  }
  static void arrange(Code*, int64_t) {}
  static Sums start(int32_t value) { return _mm512_set1_epi32(value); }
  static Weights load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void load_nibbles(const uint8_t* p, Weights* low, Weights* high) {
    const __m512i bytes = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(15);
    *low = _mm512_and_si512(bytes, mask);
    *high = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask);
  }
  static void add(Sums& sums, const Weights& weights, const Code* four) { add_dot(sums, weights, four); }
  static void to_float(const Sums& sums, S::V* out) { out[0] = _mm512_cvtepi32_ps(sums); }
};

}  // namespace slipway::cpu
