// Integer dot products of 16 columns: AVX-512 without VNNI, by products of 16-bit pairs.
#pragma once

#include <cstring>

#include "quantized.h"
#include "simd_avx512.h"

namespace slipway::cpu {

struct Avx512Dot {
  using S = Avx512;
  using Code = int16_t;
  using Wide = Avx512Dot;
  struct Sums {
    __m512i part[2];  // eight columns each, two sums a column
  };
  struct Weights {
    __m512i part[2];
  };
  static constexpr int kRows = 4, kBlockRows = 2, kBlocks = 2;

  static void store(Code* codes, S::V values) {
    const __m256i packed = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(values));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), packed);
  }
  static void arrange(Code*, int64_t) {}
  static Sums start(int32_t value) {
    const __m512i even = _mm512_set1_epi64(int64_t(uint32_t(value)));
    return {{even, even}};
  }
  static __m256i half(const uint8_t* p, int i) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + i);
  }
  static Weights load(const uint8_t* p) {
    return {{_mm512_cvtepu8_epi16(half(p, 0)), _mm512_cvtepu8_epi16(half(p, 1))}};
  }
  static void load_nibbles(const uint8_t* p, Weights* low, Weights* high) {
    const __m256i mask = _mm256_set1_epi8(15);
    for (int i = 0; i < 2; ++i) {
      const __m256i bytes = half(p, i);
      low->part[i] = _mm512_cvtepu8_epi16(_mm256_and_si256(bytes, mask));
      high->part[i] = _mm512_cvtepu8_epi16(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask));
    }
  }
  static void add(Sums& sums, const Weights& weights, const Code* four) {
    int64_t bits;
    std::memcpy(&bits, four, sizeof(bits));
    const __m512i codes = _mm512_set1_epi64(bits);
    for (int i = 0; i < 2; ++i) {
      sums.part[i] = _mm512_add_epi32(sums.part[i], _mm512_madd_epi16(weights.part[i], codes));
    }
  }
  static void to_float(const Sums& sums, S::V* out) {
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    __m512i whole[2];
    for (int i = 0; i < 2; ++i) {
      whole[i] = _mm512_add_epi32(sums.part[i], _mm512_srli_epi64(sums.part[i], 32));
    }
    out[0] = _mm512_cvtepi32_ps(_mm512_permutex2var_epi32(whole[0], even, whole[1]));
  }
};

}  // namespace slipway::cpu
