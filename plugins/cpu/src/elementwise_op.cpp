// SkipRMSNormalization and SwiGLU: rows dealt to the session's threads.
#include <algorithm>
#include <string>
#include <vector>

#include "kernels.h"
#include "paged_attention_op.h"

namespace slipway::cpu {
namespace {

using ort::InvalidArgument;
using ort::Tensor;

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

}  // namespace

void run_skip_rms_normalization(float epsilon, const ort::Call& call) {
  const Tensor input = call.input(0), skip = call.input(1), weight = call.input(2);
  const bool same = input.rank == skip.rank && std::equal(input.shape, input.shape + input.rank, skip.shape);
  if (!same || input.rank == 0 || weight.rank != 1 || weight.shape[0] != input.last()) {
    throw InvalidArgument("input has shape " + describe(input) + ", skip " + describe(skip) + ", weight " +
                          describe(weight) +
                          "; input and skip must be alike and weight as long as their last axis");
  }
  float* output = static_cast<float*>(call.output(0, input.shape, input.rank));
  float* sum = static_cast<float*>(call.output(1, input.shape, input.rank));
  const int64_t size = input.last();
  const Kernels& kernels = active_kernels();
  for_rows(call, input.rows(), size, [&](int64_t row) {
    kernels.skip_rms_row(input.as<float>() + row * size, skip.as<float>() + row * size, weight.as<float>(),
                         epsilon, size, output + row * size, sum ? sum + row * size : nullptr);
  });
}

void run_swiglu(const ort::Call& call) {
  const Tensor input = call.input(0);
  if (input.rank == 0 || input.last() % 2 != 0) {
    throw InvalidArgument("gate_up has shape " + describe(input) + "; its last axis must be even");
  }
  const int64_t size = input.last() / 2;
  std::vector<int64_t> shape(input.shape, input.shape + input.rank);
  shape.back() = size;
  float* output = static_cast<float*>(call.output(0, shape.data(), shape.size()));
  const Kernels& kernels = active_kernels();
  for_rows(call, input.rows(), 2 * size, [&](int64_t row) {
    kernels.swiglu_row(input.as<float>() + row * 2 * size, size, output + row * size);
  });
}

}  // namespace slipway::cpu
