// Vectors of 4 floats in the compiler's own vector type: SSE2 on x86-64, NEON on aarch64.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "paged_attention.h"
#include "scalar_types.h"

namespace slipway::cpu {

struct Plain {
  typedef float V __attribute__((vector_size(16)));
  typedef int32_t Int __attribute__((vector_size(16)));
  static constexpr int kWidth = 4;
  static constexpr int kScoreRows = 4, kScoreVectors = 2;
  static constexpr int kValueRows = 4, kValueVectors = 2;

  static V zero() { return V{0, 0, 0, 0}; }
  static V set1(float x) { return V{x, x, x, x}; }
  static V iota() { return V{0, 1, 2, 3}; }
  static V add(V a, V b) { return a + b; }
  static V sub(V a, V b) { return a - b; }
  static V mul(V a, V b) { return a * b; }
  static V div(V a, V b) { return a / b; }
  static V max(V a, V b) { return a > b ? a : b; }
  static V min(V a, V b) { return a < b ? a : b; }
#if defined(__ARM_NEON)
  static V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
#else
  static V fma(V a, V b, V c) { return a * b + c; }
#endif
  // Adding and taking away 1.5 * 2^23 leaves no bit behind the point (|a| < 2^22).
  static V round(V a) {
    const V shift = set1(12582912.0f);
    return (a + shift) - shift;
  }
  static V scale_by_power(V a, V n) {
    const Int exponent = (__builtin_convertvector(n, Int) + 127) << 23;
    V power;
    std::memcpy(&power, &exponent, sizeof(power));
    return a * power;
  }
  static float sum(V a) { return (a[0] + a[2]) + (a[1] + a[3]); }
  static float maximum(V a) {
    const float even = a[0] > a[2] ? a[0] : a[2], odd = a[1] > a[3] ? a[1] : a[3];
    return even > odd ? even : odd;
  }
  static V within(V a, V b, int low, int high) {
    const V lane = iota();
    const Int inside = (lane >= set1(float(low))) & (lane < set1(float(high)));
    return inside ? a : b;
  }

  static V load(const float* p) {
    V a;
    std::memcpy(&a, p, sizeof(a));
    return a;
  }
  static V load(const Half* p) { return V{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}; }
  static V load(const BFloat16* p) {
    return V{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
  }
  static V load(const Int8* p) { return V{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}; }
  static V load(const E4m3* p) { return V{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}; }
  static void store(float* p, V a) { std::memcpy(p, &a, sizeof(a)); }

  static inline __attribute__((always_inline)) void transpose(V* a) {
    const V b0 = a[0], b1 = a[1], b2 = a[2], b3 = a[3];
    for (int i = 0; i < 4; ++i) a[i] = V{b0[i], b1[i], b2[i], b3[i]};
  }
};

}  // namespace slipway::cpu
