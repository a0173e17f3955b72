// Products with quantized weights on buffers of exact size, against sums in double precision.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "kernels.h"

namespace slipway::cpu {
namespace {

// Weights with a scale a column; in blocks with 4 bits, and rows with a scale each or a block; in blocks with 8 bits.
enum class Kind { kBytes, kNibbles, kNibblesByBlock, kWide };

// The largest difference from the definition, relative to the largest result. `size`: of blocks.
double product_error(int64_t rows, int64_t inputs, int64_t columns, int64_t size, Kind kind, std::mt19937& random) {
  const Kernels& kernels = active_kernels();
  const bool nibbles = kind == Kind::kNibbles || kind == Kind::kNibblesByBlock, by_block = kind == Kind::kNibblesByBlock;
  const bool wide = kind == Kind::kWide, blocked = nibbles || wide;
  const float most = wide ? float(kLargestWideCode) : float(kLargestCode);
  const int64_t block = blocked ? size : 0, multiple = blocked ? block : 4, padded = (inputs + multiple - 1) / multiple * multiple;
  const int64_t blocks = (columns + kColumnBlock - 1) / kColumnBlock, groups = blocked ? padded / block : 1;
  std::normal_distribution<float> normal;
  std::vector<float> input(size_t(rows * inputs)), bias(static_cast<size_t>(columns)), output(size_t(rows * columns));
  const int64_t code_bytes = block * kColumnBlock / (nibbles ? 2 : 1), group_bytes = code_bytes + kScaleBytes;
  std::vector<float> scale(size_t(blocked ? 1 : columns)), scales(size_t(rows * groups));
  std::vector<uint8_t> weight(size_t(blocked ? blocks * groups * group_bytes : blocks * padded * kColumnBlock));
  std::vector<int32_t> sums(size_t(rows * groups));
  std::vector<unsigned char> codes(size_t(rows * padded * (wide ? 2 : kernels.code_bytes)));
  for (float& x : input) x = normal(random);
  for (float& x : bias) x = normal(random);
  for (float& x : scale) x = 0.01f + 0.01f * std::fabs(normal(random));
  for (uint8_t& x : weight) x = uint8_t(random());
  const auto scale_of = [&](int64_t b, int64_t g, int64_t lane) {
    return weight.data() + (b * groups + g) * group_bytes + code_bytes + 2 * lane;
  };
  for (int64_t i = 0; i < (blocked ? blocks * groups * kColumnBlock : 0); ++i) {
    const uint16_t bits = uint16_t(0x3000 + random() % 0x1000);  // 0.125 to 2
    std::memcpy(scale_of(0, i / kColumnBlock, i % kColumnBlock), &bits, sizeof(bits));
  }
  const QuantizedMatMul call{
      {codes.data(), scales.data(), sums.data(), inputs, padded, blocked ? block : padded, by_block},
      weight.data(), scale.data(), bias.data(), output.data(), columns};
  for (int64_t r = 0; r < rows; ++r) {
    (wide ? kernels.quantize_wide_row : kernels.quantize_row)(input.data() + r * inputs, 0, call.rows, r);
  }
  (wide      ? kernels.byte_block_matmul
   : nibbles ? kernels.nibble_matmul
             : kernels.byte_matmul)(call, 0, rows, 0, blocks);
  double error = 0, largest = 0;
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<float> steps(static_cast<size_t>(inputs));
    const int64_t share = by_block ? block : inputs;
    for (int64_t i = 0; i < inputs; ++i) {
      float amax = 0;
      const int64_t first = i / share * share;
      for (int64_t j = first; j < std::min(first + share, inputs); ++j) {
        amax = std::max(amax, std::fabs(input[size_t(r * inputs + j)]));
      }
      steps[size_t(i)] = amax / most;
    }
    for (int64_t c = 0; c < columns; ++c) {
      const int64_t b = c / kColumnBlock, lane = c % kColumnBlock;
      double wanted = bias[size_t(c)];
      for (int64_t i = 0; i < inputs; ++i) {
        const float step = steps[size_t(i)];
        const double code = std::nearbyint(input[size_t(r * inputs + i)] / step);
        double w = 0;
        if (blocked) {
          const uint8_t* group = weight.data() + (b * groups + i / block) * group_bytes;
          const int byte = group[i % block / (nibbles ? 8 : 4) * 64 + 4 * lane + i % 4];
          uint16_t bits;
          std::memcpy(&bits, scale_of(b, i / block, lane), sizeof(bits));
          const double half = std::ldexp(1024 + (bits & 1023), (bits >> 10) - 25);
          w = (wide ? byte - 128 : (i % 8 < 4 ? byte & 15 : byte >> 4) - 8) * half * double(scale[0]);
        } else {
          w = (weight[size_t((b * padded / 4 + i / 4) * 64 + 4 * lane + i % 4)] - 128) * double(scale[size_t(c)]);
        }
        wanted += code * step * w;
      }
      error = std::max(error, std::fabs(wanted - output[size_t(r * columns + c)]));
      largest = std::max(largest, std::fabs(wanted));
    }
  }
  std::vector<float> back(static_cast<size_t>(inputs));
  kernels.fake_quantize_row(input.data(), inputs, back.data());
  for (int64_t i = 0; i < inputs; ++i) {
    if (!by_block && !wide && std::fabs(back[size_t(i)] - input[size_t(i)]) > scales[0] * 0.500001f) return 1;
  }
  return error / largest;
}

}  // namespace

double run_quantized() {
  std::mt19937 random(5);
  double error = 0;
  for (int64_t block : {8, 32, 128}) {
    for (const auto& [rows, inputs, columns] : std::vector<std::array<int64_t, 3>>{
             {1, 1, 1}, {9, 33, 65}, {7, 64, 130}, {2, 100, 16}, {13, 40, 71}}) {
      for (Kind kind : {Kind::kBytes, Kind::kNibbles, Kind::kNibblesByBlock, Kind::kWide}) {
        error = std::max(error, product_error(rows, inputs, columns, block, kind, random));
      }
    }
  }
  return error;
}

}  // namespace slipway::cpu
