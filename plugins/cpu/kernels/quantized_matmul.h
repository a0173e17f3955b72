// Rows of codes times quantized weights. Integer sums are exact, and a result's floating-point steps are the same
// whatever rows and columns are computed beside it: company changes no bit.
#pragma once

#include <algorithm>
#include <type_traits>

#include "quantize_row.h"

namespace slipway::cpu {

// Columns [16 * block, ...) of one row: values times factors, plus bias, as far as there are columns.
template <class S>
inline void store_columns(const QuantizedMatMul& call, int64_t row, int64_t block, const typename S::V* values,
                          const typename S::V* factors) {
  constexpr int W = S::kWidth;
  float* output = call.output + row * call.columns;
  for (int v = 0; v < kColumnBlock / W; ++v) {
    const int64_t column = block * kColumnBlock + v * W;
    const int count = int(std::clamp<int64_t>(call.columns - column, 0, W));
    if (count == 0) return;
    const typename S::V bias = call.bias ? load_part<S>(call.bias + column, count) : S::zero();
    store_part<S>(output + column, S::fma(values[v], factors[v], bias), count);
  }
}

#define SLIPWAY_INLINE __attribute__((always_inline))

// f(0), f(1), ... f(kCount - 1), written out: loops over accumulators that the compiler unrolls too late leave them in
// memory.
template <int kCount, class F>
inline SLIPWAY_INLINE void each(F&& f) {
  if constexpr (kCount > 1) each<kCount - 1>(f);
  f(std::integral_constant<int, kCount - 1>());
}

// Rows [row, row + kRows) times blocks [block, block + kBlocks) of 8-bit weights with a scale a column.
template <class D, int kRows, int kBlocks>
inline SLIPWAY_INLINE void byte_tile(const QuantizedMatMul& call, int64_t row, int64_t block) {
  using S = typename D::S;
  using V = typename S::V;
  constexpr int W = S::kWidth, kVectors = kColumnBlock / W;
  const int64_t padded = call.rows.padded, block_bytes = padded * kColumnBlock;
  const auto* codes = static_cast<const typename D::Code*>(call.rows.codes) + row * padded;
  const uint8_t* weight = call.weight + block * block_bytes;
  typename D::Sums sums[kRows][kBlocks];
  each<kRows>([&](auto r) SLIPWAY_INLINE {
    const auto start = D::start(-kByteOffset * call.rows.sums[row + r]);
    each<kBlocks>([&](auto b) SLIPWAY_INLINE { sums[r][b] = start; });
  });
  for (int64_t i = 0; i < padded; i += 4) {
    typename D::Weights w[kBlocks];
    each<kBlocks>([&](auto b) SLIPWAY_INLINE { w[b] = D::load(weight + b * block_bytes + i * kColumnBlock); });
    each<kRows>([&](auto r) SLIPWAY_INLINE {
      each<kBlocks>([&](auto b) SLIPWAY_INLINE { D::add(sums[r][b], w[b], codes + r * padded + i); });
    });
  }
  each<kRows>([&](auto r) SLIPWAY_INLINE {
    const V row_scale = S::set1(call.rows.scales[row + r]);
    each<kBlocks>([&](auto b) SLIPWAY_INLINE {
      V values[kVectors], factors[kVectors];
      D::to_float(sums[r][b], values);
      for (int v = 0; v < kVectors; ++v) {
        const int64_t column = (block + b) * kColumnBlock + v * W;
        const int count = int(std::clamp<int64_t>(call.columns - column, 0, W));
        factors[v] = S::mul(row_scale, load_part<S>(call.scale + column, count));
      }
      store_columns<S>(call, row + r, block + b, values, factors);
    });
  });
}

// How weights lie, and what they are multiplied with: bytes with a scale a column, or with a scale for each column and
// each block of inputs codes of 4 bits, and bytes whose rows are wide codes with one scale a row.
enum class Form { kBytes, kNibbleBlocks, kByteBlocks };

// Rows [row, row + kRows) times blocks [block, block + kBlocks) of weights with a scale for each block of inputs.
template <class D, Form kForm, int kRows, int kBlocks>
inline SLIPWAY_INLINE void block_tile(const QuantizedMatMul& call, int64_t row, int64_t block) {
  using S = typename D::S;
  using V = typename S::V;
  constexpr int W = S::kWidth, kVectors = kColumnBlock / W;
  const int64_t padded = call.rows.padded, inputs = call.rows.block, groups = padded / inputs;
  constexpr bool kNibbles = kForm == Form::kNibbleBlocks;
  const int64_t code_bytes = inputs * kColumnBlock / (kNibbles ? 2 : 1), group_bytes = code_bytes + kScaleBytes;
  const int64_t block_bytes = groups * group_bytes;
  const auto* codes = static_cast<const typename D::Code*>(call.rows.codes) + row * padded;
  const uint8_t* weight = call.weight + block * block_bytes;
  const float* row_scales = call.rows.scales + row * groups;
  V totals[kRows][kBlocks][kVectors];
  each<kRows>([&](auto r) SLIPWAY_INLINE {
    each<kBlocks>([&](auto b) SLIPWAY_INLINE {
      each<kVectors>([&](auto v) SLIPWAY_INLINE { totals[r][b][v] = S::zero(); });
    });
  });
  for (int64_t g = 0; g < groups; ++g) {
    typename D::Sums sums[kRows][kBlocks];
    each<kRows>([&](auto r) SLIPWAY_INLINE {
      const auto start = D::start(-(kNibbles ? kNibbleOffset : kByteOffset) * call.rows.sums[(row + r) * groups + g]);
      each<kBlocks>([&](auto b) SLIPWAY_INLINE { sums[r][b] = start; });
    });
    for (int64_t i = 0; i < inputs; i += kNibbles ? 8 : 4) {
      typename D::Weights low[kBlocks], high[kBlocks];
      each<kBlocks>([&](auto b) SLIPWAY_INLINE {
        if constexpr (kNibbles) {
          D::load_nibbles(weight + b * block_bytes + i * kColumnBlock / 2, low + b, high + b);
        } else {
          low[b] = D::load(weight + b * block_bytes + i * kColumnBlock);
        }
      });
      each<kRows>([&](auto r) SLIPWAY_INLINE {
        each<kBlocks>([&](auto b) SLIPWAY_INLINE { D::add(sums[r][b], low[b], codes + r * padded + i); });
        if constexpr (kNibbles) {
          each<kBlocks>([&](auto b) SLIPWAY_INLINE { D::add(sums[r][b], high[b], codes + r * padded + i + 4); });
        }
      });
    }
    each<kBlocks>([&](auto b) SLIPWAY_INLINE {
      const auto* scale = reinterpret_cast<const Half*>(weight + b * block_bytes + code_bytes);
      V steps[kVectors];
      each<kVectors>([&](auto v) SLIPWAY_INLINE { steps[v] = S::load(scale + v * W); });
      each<kRows>([&](auto r) SLIPWAY_INLINE {
        V values[kVectors];
        D::to_float(sums[r][b], values);
        each<kVectors>([&](auto v) SLIPWAY_INLINE {
          const V step = kNibbles ? S::mul(steps[v], S::set1(row_scales[r * groups + g])) : steps[v];
          totals[r][b][v] = S::fma(values[v], step, totals[r][b][v]);
        });
      });
    });
    weight += group_bytes;
    codes += inputs;
  }
  each<kRows>([&](auto r) SLIPWAY_INLINE {
    V factors[kVectors];
    for (V& factor : factors) factor = S::set1(kNibbles ? *call.scale : *call.scale * row_scales[r * groups]);
    each<kBlocks>(
        [&](auto b) SLIPWAY_INLINE { store_columns<S>(call, row + r, block + b, totals[r][b], factors); });
  });
}

// Rows [first_row, last_row) times blocks [first, last) of columns, in tiles that fit the registers.
template <class D, Form kForm>
void quantized_matmul(const QuantizedMatMul& call, int64_t first_row, int64_t last_row, int64_t first,
                      int64_t last) {
  constexpr int kBlocks = D::kBlocks;
  constexpr int kRows = [] {
    if constexpr (kForm == Form::kBytes) return D::kRows;
    return D::kBlockRows;
  }();
  const auto tile = [&](auto rows, auto blocks, int64_t row, int64_t block) {
    if constexpr (kForm == Form::kBytes) {
      byte_tile<D, decltype(rows)::value, decltype(blocks)::value>(call, row, block);
    } else {
      block_tile<D, kForm, decltype(rows)::value, decltype(blocks)::value>(call, row, block);
    }
  };
  const auto columns = [&](auto blocks, int64_t block) {
    int64_t row = first_row;
    for (; row + kRows <= last_row; row += kRows) tile(std::integral_constant<int, kRows>(), blocks, row, block);
    if constexpr (kRows > 2) {
      for (; row + 2 <= last_row; row += 2) tile(std::integral_constant<int, 2>(), blocks, row, block);
    }
    for (; row < last_row; ++row) tile(std::integral_constant<int, 1>(), blocks, row, block);
  };
  int64_t block = first;
  if constexpr (kBlocks > 1) {
    if (last_row - first_row > kRowsOfOneStream) {
      for (; block + kBlocks <= last; block += kBlocks) columns(std::integral_constant<int, kBlocks>(), block);
    }
  }
  for (; block < last; ++block) columns(std::integral_constant<int, 1>(), block);
}

}  // namespace slipway::cpu
