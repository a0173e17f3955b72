#include "sampling_distribution.hpp"

#include <algorithm>

#include "device.hpp"
#include "dispatch.hpp"
#include "slipway/sampling_plan.cuh"

namespace slipway {
namespace sampling {
namespace {

int ceil_div(int64_t a, int64_t b) { return int((a + b - 1) / b); }

}  // namespace

Division divide(int64_t rows, int64_t vocab) {
  require(vocab >= 1 && vocab <= kMaxVocab, "vocab is %lld; allowed are 1 to %d", static_cast<long long>(vocab),
          kMaxVocab);
  require(rows <= 65535, "%lld rows of logits are too many for one call; at most 65535", static_cast<long long>(rows));
  constexpr int kMaxWarps = 16;
  Division d;
  d.segments = ceil_div(vocab, kSegment);
  // Two blocks fit on a multiprocessor: no more of them than run at once, where rows allow it.
  const int wanted = int(2 * device().sm_count / std::max<int64_t>(rows, 1));
  d.splits = std::clamp(wanted, ceil_div(d.segments, kMaxSegmentsPerSlice), std::min(kMaxSplits, d.segments));
  d.slice = ceil_div(d.segments, d.splits);
  d.splits = ceil_div(d.segments, d.slice);
  d.warps = ceil_div(d.slice, ceil_div(d.slice, kMaxWarps));  // so that all have equally many segments
  d.group_lanes = 1;
  while (d.splits * d.warps * 32 / d.group_lanes > kMaxGroups) d.group_lanes *= 2;
  d.groups = d.splits * d.warps * 32 / d.group_lanes;
  d.capacity = std::clamp(ceil_div(vocab, 16 * 32) * 32, 64, 4096);
  d.finish_warps = std::clamp(d.segments, 2, 16);
  return d;
}

Workspace take_workspace(WorkspaceParts& parts, const Division& d, int64_t rows, int64_t vocab, bool adjusted) {
  Workspace w;
  w.adjusted = adjusted ? parts.take<float>(rows * vocab) : nullptr;
  w.slice_max = parts.take<SliceMaximum>(rows * d.splits);
  w.group_max = parts.take<float>(rows * d.groups);
  w.bin_count = parts.take<uint32_t>(rows * kBins);
  w.bin_weight = parts.take<u64>(rows * kBins);
  w.segment_weight = parts.take<u64>(rows * d.segments);
  w.candidate_count = parts.take<uint32_t>(rows);
  w.candidates = parts.take<uint2>(rows * d.capacity);
  w.plan = parts.take<RowPlan>(2 * rows);
  return w;
}

void check_allowed_tokens(const Arguments& a) {
  const int64_t vocab = a.dim("vocab"), words = (vocab + 31) / 32;
  require(!a.has("allowed_tokens") || a.dim("mask_words") == words,
          "allowed_tokens has %lld words a row; a vocabulary of %lld takes %lld",
          static_cast<long long>(a.dim("mask_words")), static_cast<long long>(vocab), static_cast<long long>(words));
}

Rows rows_of(const Arguments& a, int64_t rows) {
  Rows p;
  p.rows = int(rows), p.vocab = int(a.dim("vocab"));
  p.logits = a.data<const void>("logits"), p.row_stride = p.vocab;
  p.temperature = a.data<const float>("temperature"), p.top_k = a.data<const int32_t>("top_k");
  p.top_p = a.data<const float>("top_p"), p.min_p = a.data<const float>("min_p");
  p.allowed = a.data<const uint32_t>("allowed_tokens");
  return p;
}

void launch_distribution(const Rows& p, const Division& d, const Workspace& w, DType logits_type, void* stream) {
  dispatch_float(logits_type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const dim3 grid(unsigned(d.splits), unsigned(p.rows)), block(unsigned(d.warps * 32));
    ptx::launch(survey_kernel<T>, grid, block, size_t(survey_shared_bytes(p, d)), stream, p, d, w);
    ptx::launch(collect_kernel<T>, grid, block, size_t(kCollectSharedBytes), stream, p, d, w);
    if (!p.log_probs) ptx::launch(gather_kernel<T>, grid, block, sizeof(RowPlan), stream, p, d, w);
  });
}

}  // namespace sampling
}  // namespace slipway
