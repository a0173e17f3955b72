// What every kernel needs on top of a vector type S: partial loads, exp2, tanh.
#pragma once

#include <cstdint>

#include "paged_attention.h"
#include "scalar_types.h"

namespace slipway::cpu {

// Below every score, and still finite: a difference of two is no NaN.
constexpr float kNoScore = -1e30f;

// `count` elements (at most kWidth), zeros behind them; reads nothing beyond.
template <class S, class T>
inline typename S::V load_part(const T* p, int count) {
  if (count >= S::kWidth) return S::load(p);
  alignas(64) float lanes[S::kWidth] = {};
  for (int i = 0; i < count; ++i) lanes[i] = to_float(p[i]);
  return S::load(lanes);
}

template <class S>
inline void store_part(float* p, typename S::V a, int count) {
  if (count >= S::kWidth) {
    S::store(p, a);
    return;
  }
  alignas(64) float lanes[S::kWidth];
  S::store(lanes, a);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}

// 2^x with a relative error below 3e-7; x is clamped to [-126, 126].
template <class S>
inline __attribute__((always_inline)) typename S::V exp2(typename S::V x) {
  x = S::max(S::min(x, S::set1(126.0f)), S::set1(-126.0f));
  const typename S::V whole = S::round(x);
  const typename S::V f = S::sub(x, whole);  // in [-0.5, 0.5]
  // Polynomial of 2^f with the least relative error (9e-8) on [-0.5, 0.5] among those of degree 5 with p(0)
  // = 1.
  typename S::V p = S::fma(f, S::set1(1.32647264e-3f), S::set1(9.67151270e-3f));
  p = S::fma(p, f, S::set1(5.55073375e-2f));
  p = S::fma(p, f, S::set1(2.40222421e-1f));
  p = S::fma(p, f, S::set1(6.93146978e-1f));
  p = S::fma(p, f, S::set1(1.0f));
  return S::scale_by_power(p, whole);
}

// tanh(x) = 1 - 2 / (exp(2x) + 1); absolute error below 2e-7.
template <class S>
inline typename S::V tanh(typename S::V x) {
  const typename S::V power = exp2<S>(S::mul(x, S::set1(2 * kLog2E)));
  return S::sub(S::set1(1.0f), S::div(S::set1(2.0f), S::add(power, S::set1(1.0f))));
}

}  // namespace slipway::cpu
