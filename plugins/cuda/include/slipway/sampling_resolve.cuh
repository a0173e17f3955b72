// From the tokens in question to the threshold, and from kept tokens to the one that a random number falls on.
#pragma once
#include <cstdint>

#include "slipway/sampling_plan.cuh"

namespace slipway {
namespace sampling {

// Kept are the tokens up to (key, index), by key first.
struct Kept {
  uint32_t key;
  int index;
  u64 weight;  // of all kept tokens together

  __device__ __forceinline__ u64 weight_at(uint32_t token_key, int token_index) const {
    return token_key < key || (token_key == key && token_index <= index) ? weight_of(token_key) : 0;
  }
};

// The plan that holds for a row after all three passes.
__device__ __forceinline__ RowPlan final_plan(const Rows& p, const Workspace& w, int row) {
  RowPlan plan = w.plan[row];
  if (plan.state == RowState::kByBins) plan = w.plan[p.rows + row];
  if (plan.state == RowState::kByGroups) plan.in_question = w.candidate_count[row];
  return plan;
}

// Shared memory of a block that finishes a row: the search, the list of candidates, then what the kernel adds.
struct FinishMemory {
  SearchMemory search;
  uint2 list[1];  // [capacity]
};
__host__ __device__ inline int finish_shared_bytes(const Division& d) {
  return int(sizeof(FinishMemory)) + (d.capacity - 1) * int(sizeof(uint2));
}

// The tokens in question of a row: from the list, or from the row where the list could not hold them.
template <class T>
struct InQuestion {
  RowReader<T> reader;
  RowPlan plan;
  int segments;
  uint2* list;  // in shared memory
  int listed;   // -1: not whole

  // Called by all threads of a block. The list is there after their next barrier, which radix_search has.
  __device__ InQuestion(const Rows& p, const Division& d, const Workspace& w, const RowPlan& plan, int row,
                        FinishMemory* memory)
      : reader(p, w.adjusted, row), plan(plan), segments(d.segments), list(memory->list),
        listed(plan.in_question <= u64(d.capacity) ? int(plan.in_question) : -1) {
    for (int i = int(threadIdx.x); i < listed; i += int(blockDim.x))
      list[i] = w.candidates[int64_t(row) * d.capacity + i];
  }

  // f(key, index) for those of the calling thread. Called by all threads of the block.
  template <class F>
  __device__ __forceinline__ void visit(F f) const {
    if (listed >= 0) {
      for (int i = int(threadIdx.x); i < listed; i += int(blockDim.x)) f(list[i].x, int(list[i].y));
      return;
    }
    for (int segment = warp_index(); segment < segments; segment += warp_count())
      visit_tokens<1>(reader, segment, [&](int index, float value) {
        const uint32_t key = key_of(value, plan.largest, plan.temperature);
        if (key > plan.key_limit) return;
        if (plan.state == RowState::kByBins) {
          const int bin = bin_of(key, plan.bins);
          if (bin < plan.first_bin || bin > plan.last_bin) return;
        }
        f(key, index);
      });
  }
};

// Index of the `count`-th token, by index, that has this key, among those that visit(f) calls f(key, index) for.
template <class Visit>
__device__ int last_of_equals(SearchMemory* memory, uint32_t key, u64 count, Visit visit) {
  return int(radix_search<Measure::kCount>(memory, count, [&](auto take) {
    visit([&](uint32_t token_key, int index) {
      if (token_key == key) take(uint32_t(index), u64(0));
    });
  }).key);
}

// The threshold of a row whose state is kWhole, kByGroups or kByBins. segment_weights: the row's. Called by all threads
// of a block.
template <class T>
__device__ Kept resolve(const InQuestion<T>& source, const Filters& f, const u64* segment_weights,
                        SearchMemory* memory) {
  const RowPlan& plan = source.plan;
  Kept kept = {plan.key_limit, kMaxVocab, 0};
  if (plan.state == RowState::kWhole) {
    // Every warp adds up all segments: no barrier, and the sum is the same.
    kept.weight = warp_total(source.segments, [&](int i) { return segment_weights[i]; });
    return kept;
  }
  auto tokens = [&](auto take) { source.visit(take); };
  auto weighted = [&](auto take) { source.visit([&](uint32_t key, int) { take(key, weight_of(key)); }); };
  u64 in_question = plan.rest_weight;
  if (plan.top_k > 0) {
    const u64 target = min(u64(plan.top_k), plan.in_question);
    const Found found = radix_search<Measure::kCount>(memory, target, weighted);
    const u64 same = target - found.count_less;
    in_question = found.weight_less + same * weight_of(found.key);
    kept.key = found.key;
    if (f.top_p >= 1.0f && same < found.count_same) kept.index = last_of_equals(memory, found.key, same, tokens);
  }
  kept.weight = plan.certain_weight + in_question;
  if (f.top_p < 1.0f) {
    const u64 target = nucleus_target(f.top_p, kept.weight) - plan.certain_weight;
    const Found found = radix_search<Measure::kWeight>(memory, target, weighted);
    const u64 one = weight_of(found.key), same = (target - found.weight_less + one - 1) / one;
    kept = {found.key, kMaxVocab, plan.certain_weight + found.weight_less + same * one};
    if (same < found.count_same) kept.index = last_of_equals(memory, found.key, same, tokens);
  }
  return kept;
}

// The token that `target` (below the total) falls on: the first whose running weight, in order of index, is above it.
// segment_sums[i]: of what weight_at(index, value) gives in segment i. Called by one warp; every lane gets the token.
template <class T, class SegmentSums, class WeightAt>
__device__ int token_at(const RowReader<T>& reader, int segments, const SegmentSums& segment_sums, u64 target,
                        WeightAt weight_at) {
  const Place segment = warp_find(segments, target + 1, [&](int i) { return segment_sums[i]; });
  const int first = segment.index * kSegment;
  const Place token = warp_find(min(kSegment, reader.vocab - first), target + 1 - segment.before,
                                [&](int i) { return weight_at(first + i, reader[first + i]); });
  return first + token.index;
}

}  // namespace sampling
}  // namespace slipway
