// Normalizations of residual sums, and activations: rows dealt to the session's threads.
#include <algorithm>
#include <string>
#include <vector>

#include "for_rows.h"
#include "kernels.h"
#include "paged_attention_op.h"

namespace slipway::cpu {
namespace {

using ort::InvalidArgument;
using ort::Tensor;

}  // namespace

void run_skip_rms_normalization(float epsilon, const ort::Call& call) {
  const Tensor input = call.input(0), skip = call.input(1), weight = call.input(2);
  const bool same = input.rank == skip.rank && std::equal(input.shape, input.shape + input.rank, skip.shape);
  if (!same || input.rank == 0 || weight.rank != 1 || weight.shape[0] != input.last()) {
    throw InvalidArgument("input has shape " + describe(input) + ", skip " + describe(skip) + ", weight " +
                          describe(weight) +
                          "; input and skip must be alike and weight as long as their last axis");
  }
  float* output = static_cast<float*>(call.output(0, input.shape, input.rank));
  float* sum = static_cast<float*>(call.output(1, input.shape, input.rank));
  const int64_t size = input.last();
  const Kernels& kernels = active_kernels();
  for_rows(call, input.rows(), size, [&](int64_t row) {
    kernels.skip_rms_row(input.as<float>() + row * size, skip.as<float>() + row * size, weight.as<float>(),
                         epsilon, size, output + row * size, sum ? sum + row * size : nullptr);
  });
}

void run_skip_layer_normalization(float epsilon, const ort::Call& call) {
  const Tensor input = call.input(0), skip = call.input(1), weight = call.input(2), bias = call.input(3),
               input_bias = call.input(4);
  // skip is [..., hidden] with as many axes as input or fewer: its rows repeat along the leading axes. Its own
  // leading axes of size 1 say no more than absent ones.
  size_t first = 0;
  while (first + 1 < skip.rank && skip.shape[first] == 1) ++first;
  const size_t axes = skip.rank - first;
  const bool repeats = skip.rank >= 1 && skip.rank <= input.rank &&
                       std::equal(skip.shape + first, skip.shape + skip.rank, input.shape + (input.rank - axes));
  const auto is_row = [&](const Tensor& x) { return x.rank == 1 && x.shape[0] == input.last(); };
  if (!repeats || !is_row(weight) || (bias && !is_row(bias)) || (input_bias && !is_row(input_bias))) {
    throw InvalidArgument("input has shape " + describe(input) + ", skip " + describe(skip) + ", weight " +
                          describe(weight) +
                          "; skip must have input's last axes, and weight, bias and input_bias must be as long as "
                          "its last axis");
  }
  float* output = static_cast<float*>(call.output(0, input.shape, input.rank));
  float* sum = static_cast<float*>(call.output(1, input.shape, input.rank));
  const int64_t size = input.last(), skip_rows = skip.rows();
  const Kernels& kernels = active_kernels();
  for_rows(call, input.rows(), size, [&](int64_t row) {
    const SkipLayerRow pointers{input.as<float>() + row * size,
                                skip.as<float>() + row % skip_rows * size,
                                input_bias ? input_bias.as<float>() : nullptr,
                                weight.as<float>(),
                                bias ? bias.as<float>() : nullptr,
                                output + row * size,
                                sum ? sum + row * size : nullptr};
    kernels.skip_layer_row(pointers, epsilon, size);
  });
}

void run_bias_gelu(bool tanh, const ort::Call& call) {
  const Tensor input = call.input(0), bias = call.input(1);
  if (input.rank == 0 || bias.rank != 1 || bias.shape[0] != input.last()) {
    throw InvalidArgument("input has shape " + describe(input) + ", bias " + describe(bias) +
                          "; bias must be as long as input's last axis");
  }
  float* output = static_cast<float*>(call.output(0, input.shape, input.rank));
  const int64_t size = input.last();
  const auto compute = tanh ? active_kernels().bias_tanh_gelu_row : active_kernels().bias_gelu_row;
  for_rows(call, input.rows(), 2 * size, [&](int64_t row) {
    compute(input.as<float>() + row * size, bias.as<float>(), size, output + row * size);
  });
}

namespace {

// compute(gate_up, half, output) for each row of a tensor whose last axis holds gates, then ups.
template <class F>
void run_gated(const ort::Call& call, F&& compute) {
  const Tensor input = call.input(0);
  if (input.rank == 0 || input.last() % 2 != 0) {
    throw InvalidArgument("gate_up has shape " + describe(input) + "; its last axis must be even");
  }
  const int64_t size = input.last() / 2;
  std::vector<int64_t> shape(input.shape, input.shape + input.rank);
  shape.back() = size;
  float* output = static_cast<float*>(call.output(0, shape.data(), shape.size()));
  for_rows(call, input.rows(), 2 * size, [&](int64_t row) {
    compute(input.as<float>() + row * 2 * size, size, output + row * size);
  });
}

}  // namespace

void run_geglu(bool tanh, const ort::Call& call) {
  run_gated(call, tanh ? active_kernels().tanh_geglu_row : active_kernels().geglu_row);
}

void run_swiglu(const ort::Call& call) { run_gated(call, active_kernels().swiglu_row); }

}  // namespace slipway::cpu
