// One row of SkipRMSNormalization and of SwiGLU.
#pragma once

#include <cmath>

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
