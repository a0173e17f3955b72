// ExpertLinear: rows sorted by their expert, pieces of an expert's outputs dealt to the session's threads.
#include <algorithm>
#include <string>
#include <vector>

#include "expert_rows.h"
#include "kernels.h"
#include "paged_attention_op.h"

namespace slipway::cpu {
namespace {

using ort::InvalidArgument;
using ort::Tensor;

// Outputs of one expert that one thread computes: enough to be worth waking it.
constexpr int64_t kOutputsPerPiece = 64;

struct Piece {
  int expert;
  int64_t first;  // output
};

}  // namespace

void run_expert_linear(bool transposed, const ort::Call& call) {
  const Tensor input = call.input(0), weight = call.input(1), ids = call.input(2);
  const bool ranks = input.rank == 2 && weight.rank == 3 && ids.rank == 1;
  if (!ranks || weight.shape[transposed ? 1 : 2] != input.shape[1] || ids.shape[0] != input.shape[0]) {
    throw InvalidArgument("input has shape " + describe(input) + ", weight " + describe(weight) + ", expert_ids " +
                          describe(ids) + "; they must be [rows, in], " +
                          (transposed ? "[experts, in, out]" : "[experts, out, in]") + " and [rows]");
  }
  const int64_t n_rows = input.shape[0], experts = weight.shape[0], out = weight.shape[transposed ? 2 : 1];
  const int64_t shape[] = {n_rows, out};
  auto* output = static_cast<float*>(call.output(0, shape, 2));
  const ExpertRows sorted = rows_by_expert(ids.as<int32_t>(), n_rows, experts);
  std::vector<Piece> pieces;
  for (int e = 0; e < int(experts); ++e) {
    if (sorted.begin[size_t(e)] == sorted.begin[size_t(e) + 1]) continue;
    for (int64_t first = 0; first < out; first += kOutputsPerPiece) pieces.push_back({e, first});
  }
  const ExpertLinear linear{input.as<float>(), weight.as<float>(), output, input.shape[1], out, transposed};
  const Kernels& kernels = active_kernels();
  auto compute = [&](size_t i) {
    const auto [expert, first] = pieces[i];
    const int32_t from = sorted.begin[size_t(expert)], to = sorted.begin[size_t(expert) + 1];
    kernels.expert_linear(linear, expert, sorted.rows.data() + from, to - from, first,
                          std::min(out, first + kOutputsPerPiece));
  };
  call.parallel_for(pieces.size(), compute);
}

}  // namespace slipway::cpu
