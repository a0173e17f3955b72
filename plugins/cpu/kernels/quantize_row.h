// Activations to codes, a row at a time. The scale of a row, or of a block of it, is its largest absolute value over the
// largest code, whatever rows are beside it.
#pragma once

#include <algorithm>
#include <cfloat>

#include "quantized.h"
#include "vector_math.h"

namespace slipway::cpu {

// amax / kLargest; 1 where that is denormal; NaN where the row holds an infinity or NaN, so that its results say so.
template <class S, int kLargest>
inline float row_scale(const float* x, int64_t size) {
  using V = typename S::V;
  constexpr int W = S::kWidth;
  V largest = S::zero(), poison = S::zero();
  for (int64_t i = 0; i < size; i += W) {
    const V a = load_part<S>(x + i, size - i < W ? int(size - i) : W);
    largest = S::max(largest, S::max(a, S::sub(S::zero(), a)));
    poison = S::add(poison, S::sub(a, a));
  }
  const float scale = S::maximum(largest) / float(kLargest) + S::sum(poison);
  return scale < FLT_MIN ? 1.0f : scale;
}

// The nearest code of each of one vector's numbers, halves to the even one, as float.
template <class S, int kLargest>
inline typename S::V to_codes(typename S::V x, typename S::V scale) {
  const typename S::V most = S::set1(float(kLargest));
  return S::round(S::min(S::max(S::div(x, scale), S::sub(S::zero(), most)), most));
}

// The first `count` numbers of one vector, which are whole, as codes.
template <class D>
inline void store_codes(typename D::Code* codes, typename D::S::V values, int count) {
  using S = typename D::S;
  if (count == S::kWidth) {
    D::store(codes, values);
    return;
  }
  alignas(64) float lanes[S::kWidth];
  S::store(lanes, values);
  for (int i = 0; i < count; ++i) codes[i] = typename D::Code(int32_t(lanes[i]));
}

// Row `row` of `rows` from x [size]. `given`: a scale decided before; 0: the row's own, or its blocks'. Sums of codes are
// exact as floats: a block's is below 2^24.
template <class D, int kLargest>
void quantize_row(const float* x, float given, const QuantizedRows& rows, int64_t row) {
  using S = typename D::S;
  using V = typename S::V;
  constexpr int W = S::kWidth;
  auto* codes = static_cast<typename D::Code*>(rows.codes) + row * rows.padded;
  const int64_t blocks = rows.padded / rows.block;
  int32_t* sums = rows.sums + row * blocks;
  float* scales = rows.scales + row * blocks;
  float scale = given > 0 ? given : rows.by_block ? 0.0f : row_scale<S, kLargest>(x, rows.size);
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * rows.block, end = std::min(first + rows.block, rows.size);
    if (rows.by_block && !(given > 0)) scale = row_scale<S, kLargest>(x + first, end - first);
    scales[b] = scale;
    const V spread = S::set1(scale);
    V sum = S::zero();
    for (int64_t i = first; i < end; i += W) {
      const int count = end - i < W ? int(end - i) : W;
      V found = to_codes<S, kLargest>(load_part<S>(x + i, count), spread);
      if (count < W) found = S::within(found, S::zero(), 0, count);  // with a scale of NaN no code is zero
      sum = S::add(sum, found);
      store_codes<D>(codes + i, found, count);
    }
    for (int64_t i = end; i < first + rows.block; ++i) codes[i] = 0;
    sums[b] = int32_t(S::sum(sum));
  }
  D::arrange(codes, rows.padded);
}

// What the codes of a row stand for: y = round(x / scale) * scale.
template <class S>
void fake_quantize_row(const float* x, int64_t size, float* y) {
  using V = typename S::V;
  constexpr int W = S::kWidth;
  const V scale = S::set1(row_scale<S, kLargestCode>(x, size));
  for (int64_t i = 0; i < size; i += W) {
    const int count = size - i < W ? int(size - i) : W;
    store_part<S>(y + i, S::mul(to_codes<S, kLargestCode>(load_part<S>(x + i, count), scale), scale), count);
  }
}

}  // namespace slipway::cpu
