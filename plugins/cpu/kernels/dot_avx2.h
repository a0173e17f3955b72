// Integer dot products of 16 columns: AVX2, by products of 16-bit pairs. (vpmaddubsw is faster and saturates.)
#pragma once

#include <cstring>

#include "quantized.h"
#include "simd_avx2.h"

namespace slipway::cpu {

struct Avx2Dot {
  using S = Avx2;
  using Code = int16_t;
  using Wide = Avx2Dot;
  struct Sums {
    __m256i part[4];  // four columns each, two sums a column
  };
  struct Weights {
    __m256i part[4];
  };
  static constexpr int kRows = 2, kBlockRows = 1, kBlocks = 1;

  static void store(Code* codes, S::V values) {
    const __m256i whole = _mm256_cvtps_epi32(values);
    const __m128i packed = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), packed);
  }
  static void arrange(Code*, int64_t) {}
  static Sums start(int32_t value) {
    const __m256i even = _mm256_set1_epi64x(int64_t(uint32_t(value)));
    return {{even, even, even, even}};
  }
  static __m256i widen(__m128i bytes) { return _mm256_cvtepu8_epi16(bytes); }
  static __m128i quarter(const uint8_t* p, int i) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i);
  }
  static Weights load(const uint8_t* p) {
    return {{widen(quarter(p, 0)), widen(quarter(p, 1)), widen(quarter(p, 2)), widen(quarter(p, 3))}};
  }
  static void load_nibbles(const uint8_t* p, Weights* low, Weights* high) {
    const __m128i mask = _mm_set1_epi8(15);
    for (int i = 0; i < 4; ++i) {
      const __m128i bytes = quarter(p, i);
      low->part[i] = widen(_mm_and_si128(bytes, mask));
      high->part[i] = widen(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask));
    }
  }
  static void add(Sums& sums, const Weights& weights, const Code* four) {
    int64_t bits;
    std::memcpy(&bits, four, sizeof(bits));
    const __m256i codes = _mm256_set1_epi64x(bits);
    for (int i = 0; i < 4; ++i) {
      sums.part[i] = _mm256_add_epi32(sums.part[i], _mm256_madd_epi16(weights.part[i], codes));
    }
  }
  static void to_float(const Sums& sums, S::V* out) {
    for (int i = 0; i < 2; ++i) {
      const __m256i pairs = _mm256_hadd_epi32(sums.part[2 * i], sums.part[2 * i + 1]);
      out[i] = _mm256_cvtepi32_ps(_mm256_permute4x64_epi64(pairs, 0xD8));
    }
  }
};

}  // namespace slipway::cpu
