// Where packed texts come from and what becomes of them: PackedLayout, PackedPool, UnpackedRows.
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "kernels.h"
#include "packed_ops.h"

namespace slipway::cpu {
namespace {

using ort::InvalidArgument;
using ort::Tensor;

// cu_seqlens as it must be for `tokens` rows: starts with 0, does not decrease, stays within the rows.
const int32_t* checked_lengths(const Tensor& lengths, int64_t tokens) {
  const auto* cumulative = lengths.as<const int32_t>();
  bool fits = lengths.rank == 1 && lengths.shape[0] >= 1 && cumulative[0] == 0;
  for (int64_t b = 1; fits && b < lengths.shape[0]; ++b) fits = cumulative[b] >= cumulative[b - 1];
  if (!fits || cumulative[lengths.shape[0] - 1] > tokens) {
    throw InvalidArgument("cu_seqlens has shape " + describe(lengths) +
                          "; it must start with 0, not decrease, and stay within the " +
                          std::to_string(tokens) + " tokens");
  }
  return cumulative;
}

}  // namespace

void run_packed_layout(const ort::Call& call) {
  const Tensor mask = call.input(0);
  if (mask.rank != 2)
    throw InvalidArgument("attention_mask has shape " + describe(mask) + "; two axes are needed");
  const int64_t batch = mask.shape[0], length = mask.shape[1];
  const auto* flags = mask.as<const int64_t>();
  std::vector<int32_t> lengths(static_cast<size_t>(batch));
  int64_t tokens = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t* row = flags + b * length;
    int64_t live = 0;
    while (live < length && row[live] == 1) ++live;
    for (int64_t j = live; j < length; ++j) {
      if (row[j] != 0) {
        throw InvalidArgument("attention_mask[" + std::to_string(b) + ", " + std::to_string(j) + "] is " +
                              std::to_string(row[j]) + "; rows must be ones, then zeros");
      }
    }
    lengths[size_t(b)] = int32_t(live);
    tokens += live;
  }
  // A product of a single row is rounded otherwise than one of many: a row of no text keeps a lone token company.
  const int64_t starts = batch + 1, count = batch * length > 0 ? std::max<int64_t>(2, tokens) : 0;
  auto* rows = static_cast<int32_t*>(call.output(0, &count, 1));
  auto* positions = static_cast<int32_t*>(call.output(1, &count, 1));
  auto* cumulative = static_cast<int32_t*>(call.output(2, &starts, 1));
  int32_t token = 0;
  for (int64_t b = 0; b < batch; ++b) {
    if (cumulative) cumulative[b] = token;
    for (int32_t j = 0; j < lengths[size_t(b)]; ++j, ++token) {
      if (rows) rows[token] = int32_t(b * length) + j;
      if (positions) positions[token] = j;
    }
  }
  if (cumulative) cumulative[batch] = token;
  if (rows) std::fill(rows + tokens, rows + count, 0);
  if (positions) std::fill(positions + tokens, positions + count, 0);
}

void run_packed_pool(int64_t kind, const ort::Call& call) {
  const Tensor rows = call.input(0), lengths = call.input(1);
  if (rows.rank != 2 || kind < 0 || kind > 3) {
    throw InvalidArgument("rows has shape " + describe(rows) + " and kind is " + std::to_string(kind) +
                          "; [tokens, width] and a kind of 0 to 3 are needed");
  }
  const auto* cumulative = checked_lengths(lengths, rows.shape[0]);
  const int64_t width = rows.shape[1], shape[] = {lengths.shape[0] - 1, width};
  auto* output = static_cast<float*>(call.output(0, shape, 2));
  const Kernels& kernels = active_kernels();
  auto pool = [&](size_t b) {
    const float* first = rows.as<const float>() + cumulative[b] * width;
    const int64_t count = cumulative[b + 1] - cumulative[b];
    float* result = output + int64_t(b) * width;
    if (count > 0 && kind < 2) {
      kernels.pool_rows(first, count, width, kind == 1, result);
    } else if (count > 0) {
      std::memcpy(result, kind == 2 ? first : first + (count - 1) * width, size_t(width) * sizeof(float));
    } else {
      std::fill(result, result + width, 0.0f);
    }
  };
  call.parallel_for(size_t(shape[0]), pool);
}

void run_unpacked_rows(const ort::Call& call) {
  const Tensor rows = call.input(0), lengths = call.input(1), mask = call.input(2);
  if (rows.rank < 1 || mask.rank != 2 || lengths.rank != 1 || lengths.shape[0] != mask.shape[0] + 1) {
    throw InvalidArgument("rows has shape " + describe(rows) + ", cu_seqlens " + describe(lengths) +
                          ", attention_mask " + describe(mask) +
                          "; [tokens, ...], [batch + 1] and [batch, length] are needed");
  }
  const auto* cumulative = checked_lengths(lengths, rows.shape[0]);
  std::vector<int64_t> shape{mask.shape[0], mask.shape[1]};
  shape.insert(shape.end(), rows.shape + 1, rows.shape + rows.rank);
  int64_t width = 1;
  for (size_t axis = 1; axis < rows.rank; ++axis) width *= rows.shape[axis];
  auto* output = static_cast<float*>(call.output(0, shape.data(), shape.size()));
  const int64_t length = mask.shape[1];
  for (int64_t b = 0; b < mask.shape[0]; ++b) {
    const int64_t count = cumulative[b + 1] - cumulative[b];
    if (count > length) {
      throw InvalidArgument("text " + std::to_string(b) + " has " + std::to_string(count) +
                            " tokens; there is place for " + std::to_string(length));
    }
    float* text = output + b * length * width;
    std::memcpy(text, rows.as<const float>() + cumulative[b] * width, size_t(count * width) * sizeof(float));
    std::fill(text + count * width, text + length * width, 0.0f);
  }
}

}  // namespace slipway::cpu
