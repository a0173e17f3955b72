// The rows of one text as one row.
#pragma once

#include <cstdint>

#include "vector_math.h"

namespace slipway::cpu {

// output = the sum of `count` rows of `width`, taken in order, or the maximum of each element; count >= 1.
template <class S>
void pool_rows(const float* rows, int64_t count, int64_t width, bool maximum, float* output) {
  using V = typename S::V;
  constexpr int W = S::kWidth;
  for (int64_t i = 0; i < width; i += W) {
    const int lanes = width - i < W ? int(width - i) : W;
    V total = load_part<S>(rows + i, lanes);
    for (int64_t r = 1; r < count; ++r) {
      const V row = load_part<S>(rows + r * width + i, lanes);
      total = maximum ? S::max(total, row) : S::add(total, row);
    }
    store_part<S>(output + i, total, lanes);
  }
}

}  // namespace slipway::cpu
