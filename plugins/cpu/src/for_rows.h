// Rows of a tensor dealt to the session's threads.
#pragma once

#include <algorithm>

#include "ort_call.h"

namespace slipway::cpu {

// Runs row(i) for all rows, in pieces of about ten microseconds: less is not worth waking a thread.
template <class F>
void for_rows(const ort::Call& call, int64_t rows, int64_t row_size, F&& row) {
  const int64_t rows_per_piece = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, row_size));
  auto piece = [&](size_t i) {
    const int64_t first = int64_t(i) * rows_per_piece;
    for (int64_t r = first; r < std::min(rows, first + rows_per_piece); ++r) row(r);
  };
  call.parallel_for(size_t((rows + rows_per_piece - 1) / rows_per_piece), piece);
}

}  // namespace slipway::cpu
