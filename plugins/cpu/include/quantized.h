// Products with quantized weights on raw pointers: how weights and activations lie in memory.
//
// Weights are unsigned codes, activations signed ones: what AVX-512 VNNI multiplies (unsigned with signed bytes). The
// offset of the weights' codes is taken out through the sum of the activations' codes. Columns of the product
// are dealt in blocks of 16; plugins/column_blocks.py writes this layout.
//
// 8-bit weights with a scale for each block of inputs are multiplied with wide codes of activations, 16 bits a code.
#pragma once

#include <cstdint>

namespace slipway::cpu {

constexpr int kColumnBlock = 16;
constexpr int kByteOffset = 128;   // an 8-bit code c means c - 128
constexpr int kNibbleOffset = 8;   // a 4-bit code c means c - 8
constexpr int kScaleBytes = 2 * kColumnBlock;  // behind the codes of a block of inputs: a float16 for each column
constexpr int64_t kMostInputs = 65536;  // 255 * 127 * in fits 31 bits
constexpr int kLargestCode = 127;
constexpr int kLargestWideCode = 127 * 256 + 127;  // = 256 * high + low, with both from -128 to 127
constexpr int64_t kMostWideBlock = 128;  // inputs with one scale: 255 * kLargestWideCode * block fits 31 bits

// So few rows are bound by reading the weights, which are taken a block of columns at a time: one stretch of memory. (Four
// blocks side by side took 1.5 times as long for one row.) More rows are bound by arithmetic.
constexpr int64_t kRowsOfOneStream = 6;

// Rows of activations in codes of -127 to 127, or wide ones of up to kLargestWideCode. Codes take Kernels::code_bytes, wide
// ones two bytes, as the kernels of one set arrange them; rows are padded with zeros to `padded` codes.
// `sums` [rows, padded / block]: sum of each block of codes.
struct QuantizedRows {
  void* codes;    // [rows, padded]
  float* scales;  // [rows, padded / block]: a row's own in all of its blocks, or each block's own
  int32_t* sums;  // [rows, padded / block]
  int64_t size;   // of a row before padding
  int64_t padded;
  int64_t block;  // inputs that share a scale of the weights; `padded` for 8-bit weights
  bool by_block;  // each block has a scale of its own
};

// output = (rows of activations) x weights * scales (+ bias).
struct QuantizedMatMul {
  QuantizedRows rows;
  const uint8_t* weight;  // 8 bit: [columns / 16, padded / 4, 16, 4]; in blocks: [columns / 16, padded / block] of
                          // codes and the block's scales, float16 [16]: one stream of memory. Codes of 8 bits
                          // [block / 4, 16, 4]; of 4 bits [block / 8, 16, 4], where the low nibble belongs to the
                          // first four of eight inputs
  const float* scale;     // [columns]; in blocks: one factor of all blocks' scales
  const float* bias;      // [columns] or null
  float* output;          // [rows, columns]
  int64_t columns;
};

}  // namespace slipway::cpu
