// Rows times the matrix of their expert. Each element is summed in one fixed order, whatever rows are computed beside
// it, so a row's result does not depend on its company.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "vector_math.h"

namespace slipway::cpu {

// Matrix [out, in]: output j of a row is its dot product with matrix row j. kRows rows by kOutputs outputs at once.
template <class S, int kRows, int kOutputs>
inline __attribute__((always_inline)) void dot_block(const ExpertLinear& call, const float* matrix,
                                                     const int32_t* rows, int64_t output) {
  using V = typename S::V;
  constexpr int W = S::kWidth;
  const float* x[kRows];
  for (int r = 0; r < kRows; ++r) x[r] = call.input + rows[r] * call.in;
  const float* w = matrix + output * call.in;
  V sums[kRows][kOutputs];
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kOutputs; ++j) sums[r][j] = S::zero();
  }
  for (int64_t i = 0; i < call.in; i += W) {
    const int count = call.in - i < W ? int(call.in - i) : W;
    V a[kRows];
    for (int r = 0; r < kRows; ++r) a[r] = load_part<S>(x[r] + i, count);
    for (int j = 0; j < kOutputs; ++j) {
      const V b = load_part<S>(w + j * call.in + i, count);
      for (int r = 0; r < kRows; ++r) sums[r][j] = S::fma(a[r], b, sums[r][j]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kOutputs; ++j) call.output[rows[r] * call.out + output + j] = S::sum(sums[r][j]);
  }
}

// Matrix [in, out]: the outputs of a row are the sum of matrix rows times its elements. kRows rows by kVectors vectors
// of outputs at once; only `count` of the outputs from `output` on exist.
template <class S, int kRows, int kVectors>
inline __attribute__((always_inline)) void sum_block(const ExpertLinear& call, const float* matrix,
                                                     const int32_t* rows, int64_t output, int count) {
  using V = typename S::V;
  constexpr int W = S::kWidth;
  V sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v] = S::zero();
  }
  for (int64_t i = 0; i < call.in; ++i) {
    const float* w = matrix + i * call.out + output;
    V b[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      b[v] = count == kVectors * W ? S::load(w + v * W)
                                   : load_part<S>(w + v * W, std::clamp(count - v * W, 0, W));
    }
    for (int r = 0; r < kRows; ++r) {
      const V a = S::set1(call.input[rows[r] * call.in + i]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = S::fma(a, b[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      store_part<S>(call.output + rows[r] * call.out + output + v * W, sums[r][v],
                    std::clamp(count - v * W, 0, W));
    }
  }
}

// Outputs [first, last) of one expert's rows.
template <class S>
void expert_linear(const ExpertLinear& call, int expert, const int32_t* rows, int n_rows, int64_t first,
                   int64_t last) {
  constexpr int kRows = S::kWidth == 16 ? 4 : 2, kOutputs = 4, kVectors = 4;
  const float* matrix = call.weight + int64_t(expert) * call.in * call.out;
  if (call.transposed) {
    for (int64_t output = first; output < last; output += kVectors * S::kWidth) {
      const int count = int(std::min<int64_t>(kVectors * S::kWidth, last - output));
      int row = 0;
      for (; row + kRows <= n_rows; row += kRows) sum_block<S, kRows, kVectors>(call, matrix, rows + row, output, count);
      for (; row < n_rows; ++row) sum_block<S, 1, kVectors>(call, matrix, rows + row, output, count);
    }
    return;
  }
  int64_t output = first;
  for (; output + kOutputs <= last; output += kOutputs) {
    int row = 0;
    for (; row + kRows <= n_rows; row += kRows) dot_block<S, kRows, kOutputs>(call, matrix, rows + row, output);
    for (; row < n_rows; ++row) dot_block<S, 1, kOutputs>(call, matrix, rows + row, output);
  }
  for (; output < last; ++output) {
    for (int row = 0; row < n_rows; ++row) dot_block<S, 1, 1>(call, matrix, rows + row, output);
  }
}

}  // namespace slipway::cpu
