// Which drafted tokens are accepted, and the token that follows them.
//
// Leviathan et al., "Fast inference from transformers via speculative decoding", 2023; Chen et al., "Accelerating large
// language model decoding with speculative sampling", 2023. A draft that was drawn from q is accepted with probability
// min(1, p / q), where p is the target's distribution after temperature and filters. The first rejected one is replaced
// by a token of the residual max(0, p - q), normalized; after the last accepted draft a token of p follows. What is
// emitted is distributed as p. The number that accepts is word 1 of philox(seed, position), the one that draws word 0:
// without drafts the result is that of sampling.
#pragma once
#include <cstdint>

#include "slipway/sampling_resolve.cuh"

namespace slipway {
namespace sampling {

// Row r = request * (drafts + 1) + place predicts the token at `place`: what follows `place` drafts.
struct Target {
  RowState state;  // kUnusable, kGreedy, or another
  int largest_index;
  float largest, temperature;
  Kept kept;
};

struct Speculation {
  const int32_t* draft_tokens;  // [requests, drafts]; after a request's last draft -1
  const float* draft_probs;     // [requests, drafts, vocab], what drafts were drawn from; NULL: all of it on the draft
  int drafts;
  const u64* seed;          // [requests]
  const int32_t* position;  // [requests]: index of the first output token of this step
  const Target* targets;    // [requests * (drafts + 1)]
  int32_t* accepted;        // [requests]: how many drafts
  int32_t* tokens;          // [requests, drafts + 1]: accepted drafts, one more, then -1. -1 for the one more: unusable
};

// Grid (rows), finish_warps warps a block.
template <class T>
__global__ void __launch_bounds__(512, 1) target_kernel(Rows p, Division d, Workspace w, Target* targets) {
  DYNAMIC_SMEM(memory);
  const int row = int(blockIdx.x);
  const RowPlan plan = final_plan(p, w, row);
  Target target = {plan.state, plan.largest_index, plan.largest, plan.temperature, {}};
  if (plan.state != RowState::kUnusable && plan.state != RowState::kGreedy) {
    FinishMemory* const finish = reinterpret_cast<FinishMemory*>(memory);
    const InQuestion<T> source(p, d, w, plan, row, finish);
    target.kept = resolve(source, filters_of(p, row), w.segment_weight + int64_t(row) * d.segments, &finish->search);
  }
  if (threadIdx.x == 0) targets[row] = target;
}

// floor(probability * total) for a probability in [0, 1]; below 2^-127 it counts as 0, above 1 as 1.
__device__ __forceinline__ u64 share_of(float probability, u64 total) {
  if (!(probability > 0.0f)) return 0;
  if (probability >= 1.0f) return total;
  const uint32_t bits = __float_as_uint(probability);
  const u64 fraction = (bits & 0x7fffffu) | 0x800000u;  // of 24 bits: probability = fraction * 2^(exponent - 150)
  const int down = 126 - int(bits >> 23);
  return down < 64 ? __umul64hi(fraction << 40, total) >> down : 0;
}

template <class T>
__device__ __forceinline__ u64 target_weight(const Target& t, int index, float value) {
  return t.kept.weight_at(key_of(value, t.largest, t.temperature), index);
}

// Grid (requests), finish_warps warps a block; shared memory: [segments] of u64.
template <class T>
__global__ void __launch_bounds__(512, 1) accept_kernel(Rows p, Division d, Workspace w, Speculation s) {
  DYNAMIC_SMEM(memory);
  u64* const segment_sum = reinterpret_cast<u64*>(memory);
  const int request = int(blockIdx.x), first_row = request * (s.drafts + 1);
  const int32_t* const drafts = s.draft_tokens + int64_t(request) * s.drafts;
  auto words = [&](int place) { return philox(s.seed[request], u64(s.position[request] + place)); };
  auto probabilities = [&](int place) {
    return s.draft_probs == nullptr ? nullptr : s.draft_probs + (int64_t(request) * s.drafts + place) * p.vocab;
  };

  // Every thread walks the drafts: a handful of loads, and no barrier.
  int place = 0;
  bool rejected = false;
  for (; place < s.drafts; place++) {
    const int draft = drafts[place];
    const Target target = s.targets[first_row + place];
    if (draft < 0 || draft >= p.vocab || target.state == RowState::kUnusable) break;
    if (target.state == RowState::kGreedy) {
      if (draft != target.largest_index) break;
      continue;
    }
    const RowReader<T> reader(p, w.adjusted, first_row + place);
    const double weight = double(target_weight<T>(target, draft, reader[draft]));
    const double q = s.draft_probs == nullptr ? 1.0 : double(probabilities(place)[draft]);
    if (random_number(words(place).word[1]) * q * double(target.kept.weight) < weight) continue;
    rejected = true;
    break;
  }

  const Target target = s.targets[first_row + place];
  int token = target.state == RowState::kGreedy ? target.largest_index : -1;
  if (target.state != RowState::kUnusable && target.state != RowState::kGreedy) {
    const RowReader<T> reader(p, w.adjusted, first_row + place);
    const float* const q = rejected ? probabilities(place) : nullptr;
    const int draft = rejected ? drafts[place] : -1;
    auto weight_at = [&](int index, float value) -> u64 {
      const u64 weight = target_weight<T>(target, index, value);
      if (!rejected || weight == 0) return weight;
      const u64 taken = q != nullptr ? share_of(q[index], target.kept.weight) : index == draft ? weight : 0;
      return weight > taken ? weight - taken : 0;
    };
    u64 total;
    while (true) {
      for (int segment = warp_index(); segment < d.segments; segment += warp_count()) {
        u64 weight = 0;
        visit_tokens<2>(reader, segment, [&](int index, float value) { weight += weight_at(index, value); });
        weight = warp_sum(weight);
        if (lane_index() == 0) segment_sum[segment] = weight;
      }
      __syncthreads();
      total = warp_total(d.segments, [&](int i) { return segment_sum[i]; });
      if (total > 0) break;
      rejected = false;  // p and q agree to the last bit: p itself
      __syncthreads();
    }
    if (threadIdx.x < 32)
      token = token_at(reader, d.segments, segment_sum, random_below(words(place).word[0], total), weight_at);
  }
  int32_t* const out = s.tokens + int64_t(request) * (s.drafts + 1);
  for (int i = int(threadIdx.x); i <= s.drafts; i += int(blockDim.x)) {
    if (i != place) out[i] = i < place ? drafts[i] : -1;
  }
  if (threadIdx.x == 0) out[place] = token, s.accepted[request] = place;
}

}  // namespace sampling
}  // namespace slipway
