// QuantizedExpertLinear: rows sorted by their expert and rounded to codes in that order, so that each expert's rows are a
// QuantizedMatMul of their own. Experts that no row goes to are not read.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "expert_rows.h"
#include "for_rows.h"
#include "kernels.h"
#include "paged_attention_op.h"

namespace slipway::cpu {
namespace {

using ort::InvalidArgument;
using ort::Tensor;

// Blocks of 16 columns of one expert that one thread computes: their weights stay in the second-level cache.
constexpr int64_t kBlocksPerPiece = 4;

struct Piece {
  int64_t expert;
  int64_t first;  // block of columns
};

// How the packed matrix of one expert lies; `inputs` and `columns` are without padding.
struct ExpertLayout {
  bool nibbles, by_blocks;  // codes of 4 bits; scales of blocks of inputs
  int64_t experts, inputs, columns;
  int64_t blocks;  // of 16 columns
  int64_t padded;  // inputs
  int64_t block;   // inputs with one scale
  int64_t bytes;   // of an expert's codes, with the scales between them
  bool wide() const { return by_blocks && !nibbles; }       // rows that it is multiplied with
  int64_t scales() const { return by_blocks ? 1 : columns; }  // of an expert, beside its codes
};

ExpertLayout layout_of(const Tensor& weight, const Tensor& scale, const QuantizedAttributes& attributes, int64_t inputs) {
  const bool nibbles = attributes.bits == 4, by_blocks = nibbles || scale.rank == 1;
  ExpertLayout layout{nibbles, by_blocks, 0, inputs, attributes.columns, 0, 0, 0, 0};
  layout.blocks = (layout.columns + kColumnBlock - 1) / kColumnBlock;
  bool fits = (nibbles || attributes.bits == 8) && weight.rank == 4 && weight.shape[1] == layout.blocks &&
              scale.rank == (by_blocks ? 1 : 2) && scale.shape[0] == weight.shape[0];
  if (fits && by_blocks) {
    const int64_t code_bytes = weight.last() - kScaleBytes;
    layout.block = code_bytes * (nibbles ? 2 : 1) / kColumnBlock;
    layout.padded = weight.shape[2] * layout.block;
    fits = code_bytes > 0 && code_bytes % (4 * kColumnBlock) == 0 && (nibbles || layout.block <= kMostWideBlock);
  } else if (fits) {
    layout.block = layout.padded = weight.shape[2] * 4;
    fits = weight.last() == 4 * kColumnBlock && scale.last() == layout.columns;
  }
  fits = fits && inputs > 0 && inputs <= layout.padded && layout.padded - inputs < layout.block &&
         layout.padded <= kMostInputs;
  if (!fits) {
    throw InvalidArgument("weight has shape " + describe(weight) + " and scale " + describe(scale) + " for " +
                          std::to_string(inputs) + " inputs, " + std::to_string(layout.columns) + " columns and " +
                          std::to_string(attributes.bits) +
                          " bits; they must be [experts, columns / 16, inputs / 4, 64] and [experts, columns], or in "
                          "blocks [experts, columns / 16, inputs / block, 2 * bits * block + 32] and [experts], rounded up");
  }
  layout.experts = weight.shape[0];
  layout.bytes = weight.shape[1] * weight.shape[2] * weight.shape[3];
  return layout;
}

}  // namespace

void run_quantized_expert_linear(const QuantizedAttributes& attributes, const ort::Call& call) {
  const Tensor input = call.input(0), weight = call.input(1), scale = call.input(2), ids = call.input(3);
  if (input.rank != 2 || ids.rank != 1 || ids.shape[0] != input.shape[0]) {
    throw InvalidArgument("input has shape " + describe(input) + " and expert_ids " + describe(ids) +
                          "; they must be [rows, in] and [rows]");
  }
  const ExpertLayout layout = layout_of(weight, scale, attributes, input.last());
  if (layout.wide() && attributes.input_blocks) {
    throw InvalidArgument("8-bit weights in blocks are multiplied with rows that have a scale of their own; input_blocks "
                          "does not go with them");
  }
  const int64_t rows = input.shape[0], columns = layout.columns, groups = layout.padded / layout.block;
  const int64_t shape[] = {rows, columns};
  auto* output = static_cast<float*>(call.output(0, shape, 2));
  const ExpertRows sorted = rows_by_expert(ids.as<int32_t>(), rows, layout.experts);

  const Kernels& kernels = active_kernels();
  const int64_t row_bytes = layout.padded * (layout.wide() ? 2 : kernels.code_bytes);
  std::vector<unsigned char> codes(static_cast<size_t>(rows * row_bytes));
  std::vector<float> scales(static_cast<size_t>(rows * groups)), products(static_cast<size_t>(rows * columns));
  std::vector<int32_t> sums(static_cast<size_t>(rows * groups));
  const QuantizedRows all{codes.data(), scales.data(), sums.data(), layout.inputs, layout.padded, layout.block,
                          attributes.input_blocks};
  const auto quantize = layout.wide() ? kernels.quantize_wide_row : kernels.quantize_row;
  for_rows(call, rows, layout.inputs, [&](int64_t place) {
    quantize(input.as<const float>() + sorted.rows[size_t(place)] * layout.inputs, 0.0f, all, place);
  });

  std::vector<Piece> pieces;
  for (int64_t e = 0; e < layout.experts; ++e) {
    if (sorted.begin[size_t(e)] == sorted.begin[size_t(e) + 1]) continue;
    for (int64_t first = 0; first < layout.blocks; first += kBlocksPerPiece) pieces.push_back({e, first});
  }
  const auto multiply = layout.nibbles     ? kernels.nibble_matmul
                        : layout.by_blocks ? kernels.byte_block_matmul
                                           : kernels.byte_matmul;
  auto piece = [&](size_t i) {
    const auto [expert, first] = pieces[i];
    const int64_t from = sorted.begin[size_t(expert)], to = sorted.begin[size_t(expert) + 1];
    QuantizedMatMul product{all,
                            weight.as<const uint8_t>() + expert * layout.bytes,
                            scale.as<const float>() + expert * layout.scales(),
                            nullptr,
                            products.data(),
                            columns};
    multiply(product, from, to, first, std::min(layout.blocks, first + kBlocksPerPiece));
  };
  call.parallel_for(pieces.size(), piece);
  for_rows(call, rows, columns, [&](int64_t place) {
    std::memcpy(output + sorted.rows[size_t(place)] * columns, products.data() + place * columns,
                size_t(columns) * sizeof(float));
  });
}

}  // namespace slipway::cpu
