// Integer dot products of 16 columns, written for any processor.
#pragma once

#include <cstring>

#include "quantized.h"
#include "simd_plain.h"

namespace slipway::cpu {

template <class C>
struct PlainDotOf {
  using S = Plain;
  using Code = C;
  struct Sums {
    int32_t lane[kColumnBlock];
  };
  struct Weights {
    uint8_t code[kColumnBlock * 4];
  };
  static constexpr int kRows = 2, kBlockRows = 1, kBlocks = 1;

  static void store(Code* codes, S::V values) {
    for (int i = 0; i < S::kWidth; ++i) codes[i] = Code(int32_t(values[i]));
  }
  static void arrange(Code*, int64_t) {}
  static Sums start(int32_t value) {
    Sums sums;
    for (int32_t& lane : sums.lane) lane = value;
    return sums;
  }
  static Weights load(const uint8_t* p) {
    Weights weights;
    std::memcpy(weights.code, p, sizeof(weights.code));
    return weights;
  }
  static void load_nibbles(const uint8_t* p, Weights* low, Weights* high) {
    for (int i = 0; i < kColumnBlock * 4; ++i) {
      low->code[i] = p[i] & 15;
      high->code[i] = p[i] >> 4;
    }
  }
  static void add(Sums& sums, const Weights& weights, const Code* four) {
    for (int c = 0; c < kColumnBlock; ++c) {
      for (int i = 0; i < 4; ++i) sums.lane[c] += int32_t(weights.code[4 * c + i]) * four[i];
    }
  }
  static void to_float(const Sums& sums, S::V* out) {
    for (int c = 0; c < kColumnBlock; ++c) out[c / S::kWidth][c % S::kWidth] = float(sums.lane[c]);
  }
};

struct PlainDot : PlainDotOf<int8_t> {
  using Wide = PlainDotOf<int16_t>;
};

}  // namespace slipway::cpu
