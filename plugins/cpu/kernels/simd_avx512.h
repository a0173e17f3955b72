// Vectors of 16 floats: AVX-512 F, DQ, BW, VL.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "paged_attention.h"

namespace slipway::cpu {

struct Avx512 {
  using V = __m512;
  static constexpr int kWidth = 16;
  // Register blocks: scores are computed kScoreRows x (kScoreVectors * kWidth) at a time, outputs
  // kValueRows x (kValueVectors * kWidth).
  static constexpr int kScoreRows = 8, kScoreVectors = 2;
  static constexpr int kValueRows = 4, kValueVectors = 4;

  static V zero() { return _mm512_setzero_ps(); }
  static V set1(float x) { return _mm512_set1_ps(x); }
  static V iota() { return _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }
  static V add(V a, V b) { return _mm512_add_ps(a, b); }
  static V sub(V a, V b) { return _mm512_sub_ps(a, b); }
  static V mul(V a, V b) { return _mm512_mul_ps(a, b); }
  static V div(V a, V b) { return _mm512_div_ps(a, b); }
  static V max(V a, V b) { return _mm512_max_ps(a, b); }
  static V min(V a, V b) { return _mm512_min_ps(a, b); }
  static V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
  static V round(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  // a * 2^n for whole n in [-126, 127].
  static V scale_by_power(V a, V n) { return _mm512_scalef_ps(a, n); }
  static float sum(V a) { return _mm512_reduce_add_ps(a); }
  static float maximum(V a) { return _mm512_reduce_max_ps(a); }
  // Lanes i with low <= i < high from a, the others from b.
  static V within(V a, V b, int low, int high) {
    const V lane = iota();
    const __mmask16 inside = _mm512_cmp_ps_mask(lane, set1(float(low)), _CMP_GE_OQ) &
                             _mm512_cmp_ps_mask(lane, set1(float(high)), _CMP_LT_OQ);
    return _mm512_mask_blend_ps(inside, b, a);
  }

  static V load(const float* p) { return _mm512_loadu_ps(p); }
  static V load(const Half* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static V load(const BFloat16* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static V load(const Int8* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  // Through the halves that are 2^-8 times the numbers (scalar_types.h); NaN's bits are completed to a half's NaN.
  static V load(const E4m3* p) {
    const __m256i codes = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i halves = _mm256_and_si256(_mm256_slli_epi16(codes, 7), _mm256_set1_epi16(int16_t(0xBF80)));
    const __m256i nan = _mm256_set1_epi16(0x3F80);
    const __m256i is_nan = _mm256_cmpeq_epi16(_mm256_and_si256(halves, nan), nan);
    const __m256i all = _mm256_or_si256(halves, _mm256_and_si256(is_nan, _mm256_set1_epi16(0x7E00)));
    return _mm512_mul_ps(_mm512_cvtph_ps(all), set1(256.0f));
  }
  static void store(float* p, V a) { _mm512_storeu_ps(p, a); }

  // In place: a[i][j] <-> a[j][i].
  static inline __attribute__((always_inline)) void transpose(V* a) {
    V b[16];
    for (int i = 0; i < 16; i += 2) {
      b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      a[i] = shuffle<0x44>(b[i], b[i + 2]);
      a[i + 1] = shuffle<0xEE>(b[i], b[i + 2]);
      a[i + 2] = shuffle<0x44>(b[i + 1], b[i + 3]);
      a[i + 3] = shuffle<0xEE>(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 16; i += 8) {
      for (int j = 0; j < 4; ++j) {
        b[i + j] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0x88);
        b[i + j + 4] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0xDD);
      }
    }
    for (int j = 0; j < 8; ++j) {
      a[j] = _mm512_shuffle_f32x4(b[j], b[j + 8], 0x88);
      a[j + 8] = _mm512_shuffle_f32x4(b[j], b[j + 8], 0xDD);
    }
  }

 private:
  // Pairs of lanes out of each 128 bits: 0x44 the low pairs of a and b, 0xEE the high ones.
  template <int kPattern>
  static V shuffle(V a, V b) {
    return _mm512_shuffle_ps(a, b, kPattern);
  }
};

}  // namespace slipway::cpu
