// Rows of a step sorted by the expert that each of them goes to.
#pragma once

#include <string>
#include <vector>

#include "ort_call.h"

namespace slipway::cpu {

struct ExpertRows {
  std::vector<int32_t> begin;  // [experts + 1]: expert e has rows[begin[e]] to rows[begin[e + 1] - 1]
  std::vector<int32_t> rows;   // [rows]: sorted by expert, in each expert in their own order
};

// `ids` [rows]. Raises InvalidArgument for an expert that is not there.
inline ExpertRows rows_by_expert(const int32_t* ids, int64_t rows, int64_t experts) {
  ExpertRows sorted{std::vector<int32_t>(size_t(experts) + 1, 0), std::vector<int32_t>(static_cast<size_t>(rows))};
  for (int64_t r = 0; r < rows; ++r) {
    if (ids[r] < 0 || ids[r] >= experts) {
      throw ort::InvalidArgument("expert_ids[" + std::to_string(r) + "] is " + std::to_string(ids[r]) + "; there are " +
                                 std::to_string(experts) + " experts");
    }
    ++sorted.begin[size_t(ids[r]) + 1];
  }
  for (size_t e = 0; e < size_t(experts); ++e) sorted.begin[e + 1] += sorted.begin[e];
  std::vector<int32_t> next(sorted.begin.begin(), sorted.begin.end() - 1);
  for (int64_t r = 0; r < rows; ++r) sorted.rows[size_t(next[size_t(ids[r])]++)] = int32_t(r);
  return sorted;
}

}  // namespace slipway::cpu
