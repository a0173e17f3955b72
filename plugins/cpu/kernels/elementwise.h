// One row of the normalizations of residual sums, and of the activations.
#pragma once

#include <cmath>

#include "kernels.h"
#include "vector_math.h"

namespace slipway::cpu {

// sum = input + skip; output = sum / sqrt(mean(sum^2) + epsilon) * weight. `sum` may be null; then the sum is
// kept in `output` meanwhile.
template <class S>
void skip_rms_row(const float* input, const float* skip, const float* weight, float epsilon, int64_t size,
                  float* output, float* sum) {
  using V = typename S::V;
  constexpr int W = S::kWidth;
  float* total = sum ? sum : output;
  V squares[4] = {S::zero(), S::zero(), S::zero(), S::zero()};
  int64_t i = 0;
  for (; i + 4 * W <= size; i += 4 * W) {
    for (int v = 0; v < 4; ++v) {
      const V x = S::add(S::load(input + i + v * W), S::load(skip + i + v * W));
      S::store(total + i + v * W, x);
      squares[v] = S::fma(x, x, squares[v]);
    }
  }
  for (; i < size; i += W) {
    const int count = size - i < W ? int(size - i) : W;
    const V x = S::add(load_part<S>(input + i, count), load_part<S>(skip + i, count));
    store_part<S>(total + i, x, count);
    squares[0] = S::fma(x, x, squares[0]);
  }
  const V square = S::add(S::add(squares[0], squares[1]), S::add(squares[2], squares[3]));
  const float factor = 1.0f / std::sqrt(S::sum(square) / float(size) + epsilon);
  for (i = 0; i < size; i += W) {
    const int count = size - i < W ? int(size - i) : W;
    const V x = S::mul(load_part<S>(total + i, count), S::set1(factor));
    store_part<S>(output + i, S::mul(x, load_part<S>(weight + i, count)), count);
  }
}

// sum = input + skip (+ input_bias); output = (sum - mean) / sqrt(variance + epsilon) * weight (+ bias).
// `input_bias`, `bias` and `sum` may be null; without `sum` the sum is kept in `output` meanwhile. The variance is
// summed from differences to the mean: the difference of two large sums of squares would lose its digits.
template <class S>
void skip_layer_row(const SkipLayerRow& row, float epsilon, int64_t size) {
  using V = typename S::V;
  constexpr int W = S::kWidth;
  float* total = row.sum ? row.sum : row.output;
  V sums[2] = {S::zero(), S::zero()};
  int64_t i = 0;
  for (int turn = 0; i < size; i += W, turn ^= 1) {
    const int count = size - i < W ? int(size - i) : W;
    V x = S::add(load_part<S>(row.input + i, count), load_part<S>(row.skip + i, count));
    if (row.input_bias) x = S::add(x, load_part<S>(row.input_bias + i, count));
    store_part<S>(total + i, x, count);
    sums[turn] = S::add(sums[turn], x);
  }
  const V mean = S::set1(S::sum(S::add(sums[0], sums[1])) / float(size));
  V squares[2] = {S::zero(), S::zero()};
  for (i = 0; i + 2 * W <= size; i += 2 * W) {
    for (int v = 0; v < 2; ++v) {
      const V x = S::sub(S::load(total + i + v * W), mean);
      squares[v] = S::fma(x, x, squares[v]);
    }
  }
  for (; i < size; i += W) {
    const int count = size - i < W ? int(size - i) : W;
    V x = S::sub(load_part<S>(total + i, count), mean);
    if (count < W) x = S::within(x, S::zero(), 0, count);
    squares[0] = S::fma(x, x, squares[0]);
  }
  const V factor = S::set1(1.0f / std::sqrt(S::sum(S::add(squares[0], squares[1])) / float(size) + epsilon));
  for (i = 0; i < size; i += W) {
    const int count = size - i < W ? int(size - i) : W;
    const V x = S::mul(S::mul(S::sub(load_part<S>(total + i, count), mean), factor),
                       load_part<S>(row.weight + i, count));
    store_part<S>(row.output + i, row.bias ? S::add(x, load_part<S>(row.bias + i, count)) : x, count);
  }
}

// x * P(a normal variable is below x), by erf (Abramowitz and Stegun 7.1.26, absolute error below 2e-7): q is the
// tail beyond |x|, so that the result for negative x is a product and loses no digits.
template <class S>
inline typename S::V gelu(typename S::V x) {
  using V = typename S::V;
  const V size = S::max(x, S::sub(S::zero(), x));
  const V z = S::mul(size, S::set1(0.70710678f));
  const V t = S::div(S::set1(1.0f), S::fma(z, S::set1(0.3275911f), S::set1(1.0f)));
  V p = S::fma(t, S::set1(0.5f * 1.061405429f), S::set1(0.5f * -1.453152027f));
  p = S::fma(p, t, S::set1(0.5f * 1.421413741f));
  p = S::fma(p, t, S::set1(0.5f * -0.284496736f));
  p = S::fma(p, t, S::set1(0.5f * 0.254829592f));
  const V power = exp2<S>(S::mul(S::mul(z, z), S::set1(-kLog2E)));
  const V q = S::mul(S::mul(p, t), power);
  return S::sub(S::max(x, S::zero()), S::mul(size, q));
}

// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3).
template <class S>
inline typename S::V tanh_gelu(typename S::V x) {
  using V = typename S::V;
  constexpr float kTwice = 2 * 0.7978845608f;
  const V cubic = S::fma(S::mul(x, x), S::set1(kTwice * 0.044715f), S::set1(kTwice));
  const V power = exp2<S>(S::mul(S::mul(x, cubic), S::set1(-kLog2E)));
  return S::div(x, S::add(S::set1(1.0f), power));
}

// output = gelu(input + bias).
template <class S, bool kTanh>
void bias_gelu_row(const float* input, const float* bias, int64_t size, float* output) {
  using V = typename S::V;
  constexpr int W = S::kWidth;
  for (int64_t i = 0; i < size; i += W) {
    const int count = size - i < W ? int(size - i) : W;
    const V x = S::add(load_part<S>(input + i, count), load_part<S>(bias + i, count));
    store_part<S>(output + i, kTanh ? tanh_gelu<S>(x) : gelu<S>(x), count);
  }
}

// output = gelu(gate) * up.
template <class S, bool kTanh>
void geglu_row(const float* gate_up, int64_t size, float* output) {
  using V = typename S::V;
  constexpr int W = S::kWidth;
  for (int64_t i = 0; i < size; i += W) {
    const int count = size - i < W ? int(size - i) : W;
    const V gate = load_part<S>(gate_up + i, count), up = load_part<S>(gate_up + size + i, count);
    store_part<S>(output + i, S::mul(kTanh ? tanh_gelu<S>(gate) : gelu<S>(gate), up), count);
  }
}

// output = gate / (1 + exp(-gate)) * up.
template <class S>
void swiglu_row(const float* gate_up, int64_t size, float* output) {
  using V = typename S::V;
  constexpr int W = S::kWidth;
  for (int64_t i = 0; i < size; i += W) {
    const int count = size - i < W ? int(size - i) : W;
    const V gate = load_part<S>(gate_up + i, count), up = load_part<S>(gate_up + size + i, count);
    const V power = exp2<S>(S::mul(gate, S::set1(-kLog2E)));
    store_part<S>(output + i, S::mul(S::div(gate, S::add(S::set1(1.0f), power)), up), count);
  }
}

}  // namespace slipway::cpu
