// Kernels of single rows, and conversions of 16-bit floating point, against sums in double precision.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "scalar_types.h"

namespace slipway::cpu {

// Rows of every length up to some vectors.
double run_elementwise() {
  double error = 0;
  const Kernels& kernels = active_kernels();
  for (int size : {1, 3, 15, 16, 17, 64, 70, 129}) {
    std::vector<float> input(size), skip(size), weight(size), output(size), sum(size), gates(2 * size);
    double squares = 0;
    for (int i = 0; i < size; ++i) {
      input[i] = std::sin(float(i));
      skip[i] = std::cos(float(3 * i));
      weight[i] = float(i % 5) - 2;
      gates[i] = 8 * std::sin(float(i));
      gates[size + i] = std::cos(float(i));
      squares += std::pow(double(input[i]) + skip[i], 2);
    }
    kernels.skip_rms_row(input.data(), skip.data(), weight.data(), 1e-5f, size, output.data(), sum.data());
    for (int i = 0; i < size; ++i) {
      const double wanted = (double(input[i]) + skip[i]) / std::sqrt(squares / size + 1e-5) * weight[i];
      error = std::max(error, std::fabs(wanted - output[i]));
    }
    kernels.skip_rms_row(input.data(), skip.data(), weight.data(), 1e-5f, size, sum.data(), nullptr);
    for (int i = 0; i < size; ++i) error = std::max(error, double(std::fabs(sum[i] - output[i])));
    kernels.swiglu_row(gates.data(), size, output.data());
    for (int i = 0; i < size; ++i) {
      const double wanted = gates[i] / (1 + std::exp(-double(gates[i]))) * gates[size + i];
      error = std::max(error, std::fabs(wanted - output[i]));
    }
    const SkipLayerRow row{input.data(), skip.data(), weight.data(), weight.data(), weight.data(), output.data(), sum.data()};
    kernels.skip_layer_row(row, 1e-5f, size);
    double mean = 0, variance = 0;
    for (int i = 0; i < size; ++i) mean += (double(input[i]) + skip[i] + weight[i]) / size;
    for (int i = 0; i < size; ++i) {
      variance += std::pow(double(input[i]) + skip[i] + weight[i] - mean, 2) / size;
    }
    for (int i = 0; i < size; ++i) {
      const double centred = double(input[i]) + skip[i] + weight[i] - mean;
      // One element has no variance: what is left of its difference to the mean is rounding.
      const double wanted = (size == 1 ? 0 : centred / std::sqrt(variance + 1e-5) * weight[i]) + weight[i];
      error = std::max(error, std::fabs(wanted - output[i]));
    }
    const auto gelu = [](double x, bool tanh) {
      return tanh ? x / 2 * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
                  : x / 2 * (1 + std::erf(x / std::sqrt(2.0)));
    };
    for (bool tanh : {false, true}) {
      (tanh ? kernels.bias_tanh_gelu_row : kernels.bias_gelu_row)(input.data(), skip.data(), size, output.data());
      for (int i = 0; i < size; ++i) {
        error = std::max(error, std::fabs(gelu(double(input[i]) + skip[i], tanh) - output[i]));
      }
      (tanh ? kernels.tanh_geglu_row : kernels.geglu_row)(gates.data(), size, output.data());
      for (int i = 0; i < size; ++i) {
        error = std::max(error, std::fabs(gelu(gates[i], tanh) * gates[size + i] - output[i]));
      }
    }
  }
  return error;
}

// Every half through the conversions and back, and halfway cases to even.
bool conversions_hold() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    Half half{uint16_t(bits)}, back{};
    const float x = to_float(half);
    from_float(x, &back);
    if (!std::isnan(x) && back.bits != half.bits) return false;
    if (std::isnan(x) && !std::isnan(to_float(back))) return false;
    BFloat16 brain{uint16_t(bits)}, brain_back{};
    const float y = to_float(brain);
    from_float(y, &brain_back);
    if (!std::isnan(y) && brain_back.bits != brain.bits) return false;
  }
  for (uint32_t code = 0; code < 0x100; ++code) {
    E4m3 back{};
    from_float(to_float(E4m3{uint8_t(code)}), &back);
    if (back.code != code) return false;
  }
  Half half{};
  BFloat16 brain{};
  from_float(65520.0f, &half);  // halfway between the largest half and infinity
  if (half.bits != 0x7C00) return false;
  from_float(1.0f + 0x1p-11f, &half);
  if (half.bits != 0x3C00) return false;
  from_float(1.0f + 3 * 0x1p-11f, &half);
  if (half.bits != 0x3C02) return false;
  from_float(0x1p-25f, &half);  // halfway between zero and the smallest subnormal
  if (half.bits != 0) return false;
  from_float(1.0f + 0x1p-8f, &brain);
  return brain.bits == 0x3F80;
}

}  // namespace slipway::cpu
