// Probabilities as integers: what a token weighs, and how tokens are ordered.
//
// A row's largest value v_max and temperature t give each token its distance d = (v_max - v) / t >= 0, in float32 with
// IEEE rounding. Its key is d's bits: an unsigned integer that grows as the token becomes less likely. Its weight is
// round(2^42 e^-d), and a token's probability is its weight over the sum of weights. Integer sums are the same in any
// order, so every result here is bit-reproducible and independent of launch shapes and of company. What is lost against
// floating point is below 2^-42 of the likeliest token's probability. e^-d is computed with fused multiply-adds alone,
// so that all devices (and the reference) agree on each weight to the bit.
#pragma once
#include <cstdint>

#include "slipway/philox.cuh"

namespace slipway {
namespace sampling {

constexpr int kWeightBits = 42;            // weight of the likeliest token: 2^42
constexpr int kMaxVocab = 1 << 20;         // so that sums stay below 2^63
constexpr uint32_t kLastFiniteKey = 0x7f7fffffu;  // of FLT_MAX; tokens of logit -inf have the next one

__device__ __forceinline__ uint32_t key_of(float value, float largest, float temperature) {
  return __float_as_uint(__fdiv_rn(__fsub_rn(largest, value), temperature)) & 0x7fffffffu;  // -0 - 0 is -0
}

__device__ __forceinline__ u64 weight_of(uint32_t key) {
  const float d = __uint_as_float(key);
  if (!(d < 30.5f)) return 0;  // 2^42 e^-30.5 < 1/4
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const float shifted = __fmaf_rn(d, 1.44269504f, kMagic);
  const float n = __fsub_rn(shifted, kMagic);  // e^-d = 2^-n e^r, |r| <= 0.35
  float r = __fmaf_rn(n, 0.693359375f, -d);
  r = __fmaf_rn(n, -2.12194440e-4f, r);
  // Polynomial of Cephes' expf (Moshier): e^r = 1 + r + r^2 p(r).
  float p = 1.9875691500e-4f;
  p = __fmaf_rn(p, r, 1.3981999507e-3f);
  p = __fmaf_rn(p, r, 8.3334519073e-3f);
  p = __fmaf_rn(p, r, 4.1665795894e-2f);
  p = __fmaf_rn(p, r, 1.6666665459e-1f);
  p = __fmaf_rn(p, r, 5.0000001201e-1f);
  const float e = __fadd_rn(1.0f, __fmaf_rn(p, __fmul_rn(r, r), r));  // in (0.7, 1.42)
  const uint32_t bits = __float_as_uint(e);
  const uint32_t fraction = ((bits & 0x7fffffu) | 0x800000u) << ((bits >> 23) - 126);  // e * 2^24, exact
  const int down = int(__float_as_uint(shifted) - __float_as_uint(kMagic)) + 32 + 24 - kWeightBits;
  return ((u64(fraction) << 32) + (1ull << (down - 1))) >> down;
}

// The same order for raw logits, which need not be divided: largest first, -inf last. Not for NaN.
__device__ __forceinline__ uint32_t descending_key(float value) {
  const uint32_t bits = __float_as_uint(value == 0.0f ? 0.0f : value);  // -0 equals 0
  return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

}  // namespace sampling
}  // namespace slipway
