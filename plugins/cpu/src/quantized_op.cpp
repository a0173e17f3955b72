// Products with quantized weights, rows of them, and activations rounded to their codes.
#include <algorithm>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "for_rows.h"
#include "kernels.h"
#include "paged_attention_op.h"
#include "scalar_types.h"

namespace slipway::cpu {
namespace {

using ort::InvalidArgument;
using ort::Tensor;

// Codes of all rows of a step, kept by the thread that calls.
struct Codes {
  std::vector<unsigned char> codes;
  std::vector<float> scales;
  std::vector<int32_t> sums;
};

// How a packed weight lies. `inputs` and `columns`: without padding.
struct Layout {
  bool nibbles, by_blocks;  // codes of 4 bits; scales of blocks of inputs
  int64_t inputs, columns;
  int64_t blocks;  // of 16 columns
  int64_t padded;  // inputs
  int64_t block;   // inputs with one scale
  bool wide() const { return by_blocks && !nibbles; }  // rows it is multiplied with
  int64_t group_bytes() const { return block * kColumnBlock / (nibbles ? 2 : 1) + kScaleBytes; }
};

// Raises InvalidArgument when weight and scale do not belong together, or not to so many inputs and columns.
Layout layout_of(const Tensor& weight, const Tensor& scale, int64_t bits, int64_t inputs, int64_t columns) {
  if (bits != 4 && bits != 8) throw InvalidArgument("bits is " + std::to_string(bits) + "; 4 and 8 are known");
  const bool nibbles = bits == 4, by_blocks = nibbles || scale.rank == 0;
  Layout layout{nibbles, by_blocks, inputs, columns, (columns + kColumnBlock - 1) / kColumnBlock, 0, 0};
  bool fits = weight.rank == 3 && weight.shape[0] == layout.blocks;
  if (fits && by_blocks) {
    const int64_t code_bytes = weight.last() - kScaleBytes;
    layout.block = code_bytes * (nibbles ? 2 : 1) / kColumnBlock;
    layout.padded = weight.shape[1] * layout.block;
    fits = code_bytes > 0 && code_bytes % (4 * kColumnBlock) == 0 && scale.rank == 0 &&
           (nibbles || layout.block <= kMostWideBlock);
  } else if (fits) {
    layout.block = layout.padded = weight.shape[1] * 4;
    fits = weight.last() == 4 * kColumnBlock && scale.rank == 1 && scale.last() == columns;
  }
  fits = fits && inputs > 0 && inputs <= layout.padded && layout.padded - inputs < layout.block &&
         layout.padded <= kMostInputs;
  if (!fits) {
    throw InvalidArgument("weight has shape " + describe(weight) + " and scale " + describe(scale) + " for " +
                          std::to_string(inputs) + " inputs and " + std::to_string(columns) + " columns; they must be " +
                          (nibbles     ? "[columns / 16, inputs / block, 8 * block + 32] and []"
                           : by_blocks ? "[columns / 16, inputs / block, 16 * block + 32] and [], with blocks of up to " +
                                             std::to_string(kMostWideBlock)
                                       : "[columns / 16, inputs / 4, 64] and [columns]") +
                          ", rounded up, with at most " + std::to_string(kMostInputs) + " inputs");
  }
  return layout;
}

// Pieces of columns and rows. Few rows: as few pieces as keep all threads busy, since weights are read once from
// memory. Many rows: 64 columns, whose weights stay in the second-level cache, by up to 192 rows.
struct Pieces {
  int64_t blocks, rows;  // of one piece
  int64_t across, down;  // pieces
};

Pieces cut(int64_t blocks, int64_t rows) {
  static const int64_t threads = std::max(1u, std::thread::hardware_concurrency());
  constexpr int64_t kPanel = 4, kManyRows = 24, kRowsPerPiece = 192;
  int64_t size = kPanel;
  if (rows < kManyRows) {
    const int64_t share = (blocks + 4 * threads - 1) / (4 * threads);
    size = rows <= kRowsOfOneStream ? share : std::max(kPanel, (share + kPanel - 1) / kPanel * kPanel);
  }
  return {size, kRowsPerPiece, (blocks + size - 1) / size, (rows + kRowsPerPiece - 1) / kRowsPerPiece};
}

}  // namespace

void run_quantized_matmul(const QuantizedAttributes& attributes, const ort::Call& call) {
  const Tensor input = call.input(0), weight = call.input(1), scale = call.input(2), bias = call.input(3),
               input_scale = call.input(4);
  if (input.rank == 0) throw InvalidArgument("input is a single number; rows are needed");
  const Layout layout = layout_of(weight, scale, attributes.bits, input.last(), attributes.columns);
  if (bias && (bias.rank != 1 || bias.last() != layout.columns)) {
    throw InvalidArgument("bias has shape " + describe(bias) + "; there are " + std::to_string(layout.columns) +
                          " columns");
  }
  const float given = input_scale ? *input_scale.as<const float>() : 0.0f;
  if (input_scale && (input_scale.rank != 0 || !(given > 0))) {
    throw InvalidArgument("input_scale has shape " + describe(input_scale) + "; it must be one number above zero");
  }
  if (layout.wide() && (input_scale || attributes.input_blocks)) {
    throw InvalidArgument("8-bit weights in blocks are multiplied with rows that have a scale of their own; neither "
                          "input_scale nor input_blocks goes with them");
  }
  const int64_t rows = input.rows();
  std::vector<int64_t> shape(input.shape, input.shape + input.rank);
  shape.back() = layout.columns;
  auto* output = static_cast<float*>(call.output(0, shape.data(), shape.size()));

  const Kernels& kernels = active_kernels();
  thread_local Codes kept;
  kept.codes.resize(std::max(kept.codes.size(), size_t(rows * layout.padded * (layout.wide() ? 2 : kernels.code_bytes))));
  const size_t scales = size_t(rows * (layout.padded / layout.block));
  kept.scales.resize(std::max(kept.scales.size(), scales));
  kept.sums.resize(std::max(kept.sums.size(), scales));
  const QuantizedMatMul product{
      {kept.codes.data(), kept.scales.data(), kept.sums.data(), layout.inputs, layout.padded, layout.block,
       attributes.input_blocks},
      weight.as<const uint8_t>(),
      scale.as<const float>(),
      bias ? bias.as<const float>() : nullptr,
      output,
      layout.columns};
  const auto quantize = layout.wide() ? kernels.quantize_wide_row : kernels.quantize_row;
  for_rows(call, rows, layout.inputs, [&](int64_t row) {
    quantize(input.as<const float>() + row * layout.inputs, given, product.rows, row);
  });
  const Pieces pieces = cut(layout.blocks, rows);
  const auto multiply = layout.nibbles     ? kernels.nibble_matmul
                        : layout.by_blocks ? kernels.byte_block_matmul
                                           : kernels.byte_matmul;
  auto piece = [&](size_t i) {
    const int64_t row = int64_t(i) % pieces.down * pieces.rows, block = int64_t(i) / pieces.down * pieces.blocks;
    multiply(product, row, std::min(rows, row + pieces.rows), block, std::min(layout.blocks, block + pieces.blocks));
  };
  call.parallel_for(size_t(pieces.across * pieces.down), piece);
}

void run_quantized_gather(const QuantizedAttributes& attributes, int64_t size, const ort::Call& call) {
  const Tensor weight = call.input(0), scale = call.input(1), indices = call.input(2);
  const Layout layout = layout_of(weight, scale, attributes.bits, size, attributes.columns);
  const auto* codes = weight.as<const uint8_t>();
  const auto* scales = scale.as<const float>();
  int64_t rows = 1;
  std::vector<int64_t> shape(indices.shape, indices.shape + indices.rank);
  for (int64_t axis : shape) rows *= axis;
  shape.push_back(size);
  auto* output = static_cast<float*>(call.output(0, shape.data(), shape.size()));
  const auto index_of = [&](int64_t row) {
    return indices.type == ort::kInt64 ? indices.as<const int64_t>()[row] : indices.as<const int32_t>()[row];
  };
  for (int64_t row = 0; row < rows; ++row) {
    if (index_of(row) < 0 || index_of(row) >= layout.columns) {
      throw InvalidArgument("index " + std::to_string(row) + " is " + std::to_string(index_of(row)) +
                            "; the table has " + std::to_string(layout.columns) + " rows");
    }
  }
  for_rows(call, rows, size, [&](int64_t row) {
    const int64_t index = index_of(row), block = index / kColumnBlock, lane = index % kColumnBlock;
    float* out = output + row * size;
    if (!layout.by_blocks) {
      const uint8_t* from = codes + block * layout.padded * kColumnBlock + 4 * lane;
      for (int64_t i = 0; i < size; ++i) {
        out[i] = float(int(from[i / 4 * 4 * kColumnBlock + i % 4]) - kByteOffset) * scales[index];
      }
      return;
    }
    const uint8_t* from = codes + block * (layout.padded / layout.block) * layout.group_bytes();
    for (int64_t first = 0; first < size; first += layout.block, from += layout.group_bytes()) {
      Half half;
      std::memcpy(&half, from + layout.group_bytes() - kScaleBytes + lane * sizeof(half), sizeof(half));
      const float step = to_float(half) * *scales;
      for (int64_t i = 0; i < std::min(layout.block, size - first); ++i) {
        if (!layout.nibbles) {
          out[first + i] = float(int(from[(i / 4 * kColumnBlock + lane) * 4 + i % 4]) - kByteOffset) * step;
          continue;
        }
        const int byte = from[(i / 8 * kColumnBlock + lane) * 4 + i % 4], code = i % 8 < 4 ? byte & 15 : byte >> 4;
        out[first + i] = float(code - kNibbleOffset) * step;
      }
    }
  });
}

void run_fake_quantize_tokens(const ort::Call& call) {
  const Tensor input = call.input(0);
  if (input.rank == 0) throw InvalidArgument("input is a single number; rows are needed");
  auto* output = static_cast<float*>(call.output(0, input.shape, input.rank));
  const int64_t size = input.last();
  const Kernels& kernels = active_kernels();
  for_rows(call, input.rows(), size, [&](int64_t row) {
    kernels.fake_quantize_row(input.as<const float>() + row * size, size, output + row * size);
  });
}

}  // namespace slipway::cpu
