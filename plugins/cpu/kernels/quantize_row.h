// Activations to codes, a row at a time. The scale of a row, or of a block of it, is its largest absolute value / 127,
// whatever rows are beside it.
#pragma once

#include <algorithm>
#include <cfloat>

#include "quantized.h"
#include "vector_math.h"

namespace slipway::cpu {

constexpr float kLargestCode = 127.0f;

// amax / 127; 1 where that is denormal; NaN where the row holds an infinity or NaN, so that its results say so.
template <class S>
inline float row_scale(const float* x, int64_t size) {
  using V = typename S::V;
  constexpr int W = S::kWidth;
  V largest = S::zero(), poison = S::zero();
  for (int64_t i = 0; i < size; i += W) {
    const V a = load_part<S>(x + i, size - i < W ? int(size - i) : W);
    largest = S::max(largest, S::max(a, S::sub(S::zero(), a)));
    poison = S::add(poison, S::sub(a, a));
  }
  const float scale = S::maximum(largest) / kLargestCode + S::sum(poison);
  return scale < FLT_MIN ? 1.0f : scale;
}

// The nearest code of each of one vector's numbers, halves to the even one, as float.
template <class S>
inline typename S::V to_codes(typename S::V x, typename S::V scale) {
  const typename S::V bounded = S::min(S::max(S::div(x, scale), S::set1(-kLargestCode)), S::set1(kLargestCode));
  return S::round(bounded);
}

// Row `row` of `rows` from x [size]. `given`: a scale decided before; 0: the row's own, or its blocks'.
template <class D>
void quantize_row(const float* x, float given, const QuantizedRows& rows, int64_t row) {
  using S = typename D::S;
  using V = typename S::V;
  constexpr int W = S::kWidth;
  auto* codes = static_cast<typename D::Code*>(rows.codes) + row * rows.padded;
  const int64_t blocks = rows.padded / rows.block;
  int32_t* sums = rows.sums + row * blocks;
  float* scales = rows.scales + row * blocks;
  float scale = given > 0 ? given : rows.by_block ? 0.0f : row_scale<S>(x, rows.size);
  alignas(64) float lanes[W];
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * rows.block, end = std::min(first + rows.block, rows.size);
    if (rows.by_block && !(given > 0)) scale = row_scale<S>(x + first, end - first);
    scales[b] = scale;
    const V spread = S::set1(scale);
    for (int64_t i = first; i < end; i += W) {
      const int count = end - i < W ? int(end - i) : W;
      S::store(lanes, to_codes<S>(load_part<S>(x + i, count), spread));
      for (int j = 0; j < count; ++j) codes[i + j] = typename D::Code(int32_t(lanes[j]));
    }
    for (int64_t i = end; i < first + rows.block; ++i) codes[i] = 0;
    int32_t sum = 0;
    for (int64_t i = first; i < first + rows.block; ++i) sum += codes[i];
    sums[b] = sum;
  }
}

// What the codes of a row stand for: y = round(x / scale) * scale.
template <class S>
void fake_quantize_row(const float* x, int64_t size, float* y) {
  using V = typename S::V;
  constexpr int W = S::kWidth;
  const V scale = S::set1(row_scale<S>(x, size));
  for (int64_t i = 0; i < size; i += W) {
    const int count = size - i < W ? int(size - i) : W;
    store_part<S>(y + i, S::mul(to_codes<S>(load_part<S>(x + i, count), scale), scale), count);
  }
}

}  // namespace slipway::cpu
