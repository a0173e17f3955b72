// Second and third pass over the logits: which tokens are certainly kept, which are in question.
//
// The kept tokens of a row are those up to a threshold in the order (key, index). `collect_kernel` finds the tokens in
// question for top-k from the largest values of groups: when k groups reach a value, so do k tokens. Where that does
// not serve (top-p alone, large k) it sums weights by bins of the distance, and `gather_kernel` takes the tokens of the
// bins that the threshold may lie in. No pass sorts; the threshold itself is found by `resolve` (sampling_resolve.cuh).
#pragma once
#include <cstdint>

#include "slipway/sampling_survey.cuh"

namespace slipway {
namespace sampling {

enum class RowState : int {
  kUnusable,  // nothing can be chosen
  kGreedy,    // the token of the largest value
  kWhole,     // every token up to key_limit is kept; segment_weight is complete
  kByGroups,  // in question: keys up to key_limit; nothing is certain
  kByBins,    // in question: bins [first_bin, last_bin]; those below are kept, those above are not
};

struct RowPlan {
  RowState state;
  float largest, temperature;
  int largest_index;
  uint32_t key_limit;      // tokens of larger keys are out
  int top_k;               // tokens in question that top-k leaves; 0: all of them
  int bins;                // index of the last bin (kept here: all kernels must agree on it)
  int first_bin, last_bin;
  u64 certain_weight;      // of the bins below first_bin
  u64 rest_weight;         // of the bins from first_bin on, which counts for top-p when top_k is 0
  u64 in_question;         // how many tokens; kByGroups: candidate_count tells
};

// What top-k, top-p and min-p ask for in this row.
struct Filters {
  float temperature, top_p;
  int top_k;           // 0: off
  uint32_t key_limit;  // by min-p
  int last_bin;        // tokens in it and beyond are one bin: top-p cannot reach it
};
__device__ __forceinline__ Filters filters_of(const Rows& p, int row) {
  const int request = row / p.rows_per_request;
  Filters f;
  f.temperature = value_or(p.temperature, request, 1.0f);
  f.top_p = value_or(p.top_p, request, 1.0f);
  const int top_k = value_or(p.top_k, request, p.every_top_k);
  f.top_k = top_k > 0 && top_k < p.vocab ? top_k : 0;
  const float min_p = value_or(p.min_p, request, 0.0f);
  f.key_limit = p.log_probs ? kLastFiniteKey + 1 : kLastFiniteKey;
  if (min_p > 0.0f) {
    const float limit = float(0.0 - log(double(min(min_p, 1.0f))));  // 0.0 - 0.0 is not -0
    f.key_limit = min(f.key_limit, __float_as_uint(limit));
  }
  if (value_or(p.top_k, request, p.every_top_k) == 1 && !p.log_probs) f.temperature = 0.0f;
  // All tokens from ln(vocab / (1 - top_p)) on weigh less than (1 - top_p) of the likeliest. A nat of margin.
  f.last_bin = kBins - 1;
  if (f.top_k == 0 && f.top_p < 1.0f)
    f.last_bin = min(kBins - 1, int(32.0f * (1.0f + logf(float(p.vocab) / (1.0f - max(f.top_p, 0.0f))))));
  return f;
}

__device__ __forceinline__ int bin_of(uint32_t key, int last_bin) {
  return int(fminf(__uint_as_float(key) * 32.0f, float(last_bin)));
}

// The row's largest value from its slices. Called by whole warps; every lane gets it.
__device__ __forceinline__ SliceMaximum largest_of(const Division& d, const Workspace& w, int row) {
  SliceMaximum all = kNothing;
  for (int i = lane_index(); i < d.splits; i += 32) take_larger(all, w.slice_max[int64_t(row) * d.splits + i]);
  return warp_larger(all);
}

__device__ __forceinline__ bool by_groups(const Rows& p, const Filters& f, const Division& d) {
  return f.top_k > 0 && (f.top_k <= d.groups || p.log_probs);
}

struct CollectMemory {
  SearchMemory search;
  uint32_t group_key[kMaxGroups];
};
struct BinMemory {
  uint32_t weight[2 * kBins];  // of Sums
  uint32_t count[kBins];
};
constexpr int kCollectSharedBytes =
    sizeof(CollectMemory) > sizeof(BinMemory) ? int(sizeof(CollectMemory)) : int(sizeof(BinMemory));

// Lists a token in question. The order of the list is left to chance; nothing depends on it.
__device__ __forceinline__ void list_candidate(const Division& d, const Workspace& w, int row, uint32_t key,
                                               int index) {
  const uint32_t place = atomicAdd(&w.candidate_count[row], 1u);
  if (place < uint32_t(d.capacity)) w.candidates[int64_t(row) * d.capacity + place] = make_uint2(key, uint32_t(index));
}

// A value below which no key is at most `key`, as near as can be had; -infinity where none is certain.
__device__ __forceinline__ float value_floor(float bound, float largest, float temperature, uint32_t key) {
  const float below = bound - 1e-4f * (largest - bound) - 1e-6f * fabsf(largest);
  return key_of(below, largest, temperature) > key ? below : -INFINITY;
}

// Adds the counts and weights of the slice's tokens to the row's bins. Called by all threads of a block.
template <class T>
__device__ __forceinline__ void sum_bins(const RowReader<T>& reader, const Division& d, const Workspace& w,
                                         const RowPlan& plan, int row, int begin, int end, BinMemory* bins) {
  const Sums weights(bins->weight, kBins);
  weights.start([](int) { return u64(0); });
  for (int i = int(threadIdx.x); i < kBins; i += int(blockDim.x)) bins->count[i] = 0;
  __syncthreads();
  u64 far_weight = 0;
  uint32_t far_count = 0;
  for (int segment = begin + warp_index(); segment < end; segment += d.warps)
    visit_tokens<1>(reader, segment, [&](int, float value) {
      const uint32_t key = key_of(value, plan.largest, plan.temperature);
      if (key > plan.key_limit) return;
      const int bin = bin_of(key, plan.bins);
      const u64 weight = weight_of(key);
      if (bin == plan.bins) {
        far_weight += weight, far_count++;
      } else {
        atomicAdd(&bins->count[bin], 1u);
        weights.add(bin, weight);
      }
    });
  far_weight = warp_sum(far_weight), far_count = warp_sum(far_count);
  if (lane_index() == 0) atomicAdd(&bins->count[plan.bins], far_count), weights.add(plan.bins, far_weight);
  __syncthreads();
  for (int i = int(threadIdx.x); i <= plan.bins; i += int(blockDim.x))
    if (bins->count[i] > 0) {
      atomicAdd(&w.bin_count[int64_t(row) * kBins + i], bins->count[i]);
      atomicAdd(&w.bin_weight[int64_t(row) * kBins + i], weights[i]);
    }
}

// Grid (splits, rows), `warps` warps a block.
template <class T>
__global__ void __launch_bounds__(512, 2) collect_kernel(Rows p, Division d, Workspace w) {
  DYNAMIC_SMEM(memory);
  const int row = int(blockIdx.y), slice = int(blockIdx.x);
  const int begin = slice * d.slice, end = min(begin + d.slice, d.segments);
  const SliceMaximum top = largest_of(d, w, row);
  Filters f = filters_of(p, row);
  RowPlan plan = {};
  plan.largest = top.value, plan.largest_index = top.index, plan.temperature = f.temperature;
  plan.key_limit = f.key_limit, plan.bins = f.last_bin;
  if (top.unusable || !(top.value > -INFINITY)) plan.state = RowState::kUnusable;
  else if (!(f.temperature > 0.0f)) plan.state = RowState::kGreedy;
  else if (by_groups(p, f, d)) plan.state = RowState::kByGroups, plan.top_k = f.top_k;
  else plan.state = f.top_k > 0 || f.top_p < 1.0f ? RowState::kByBins : RowState::kWhole;
  const RowReader<T> reader(p, w.adjusted, row);
  auto key_at = [&](float value) { return key_of(value, top.value, f.temperature); };

  float floor = -INFINITY;
  if (plan.state == RowState::kByGroups && f.top_k <= d.groups) {
    CollectMemory* const m = reinterpret_cast<CollectMemory*>(memory);
    for (int i = int(threadIdx.x); i < d.groups; i += int(blockDim.x))
      m->group_key[i] = key_at(w.group_max[int64_t(row) * d.groups + i]);
    const Found found = radix_search<Measure::kCount>(&m->search, u64(f.top_k), [&](auto take) {
      for (int i = int(threadIdx.x); i < d.groups; i += int(blockDim.x)) take(m->group_key[i], u64(0));
    });
    plan.key_limit = min(f.key_limit, found.key);
    const float distance = __uint_as_float(plan.key_limit) * f.temperature;
    floor = value_floor(top.value - distance, top.value, f.temperature, plan.key_limit);
  }
  if (slice == 0 && threadIdx.x == 0) w.plan[row] = plan;

  if (plan.state == RowState::kByGroups && !p.log_probs) {
    for (int segment = begin + warp_index(); segment < end; segment += d.warps) {
      visit_tokens<4>(reader, segment, [&](int index, float value) {
        if (value < floor) return;
        const uint32_t key = key_at(value);
        if (key <= plan.key_limit) list_candidate(d, w, row, key, index);
      });
      if (lane_index() == 0) w.segment_weight[int64_t(row) * d.segments + segment] = 0;
    }
  } else if (plan.state == RowState::kByGroups || plan.state == RowState::kWhole) {
    for (int segment = begin + warp_index(); segment < end; segment += d.warps) {
      u64 weight = 0;
      visit_tokens<1>(reader, segment, [&](int index, float value) {
        const uint32_t key = key_at(value);
        if (key <= f.key_limit) weight += weight_of(key);
        if (plan.state == RowState::kByGroups && key <= plan.key_limit) list_candidate(d, w, row, key, index);
      });
      weight = warp_sum(weight);
      if (lane_index() == 0) w.segment_weight[int64_t(row) * d.segments + segment] = weight;
    }
  } else if (plan.state == RowState::kByBins) {
    sum_bins(reader, d, w, plan, row, begin, end, reinterpret_cast<BinMemory*>(memory));
  }
}

// What top-p needs of a mass: the least running sum that ends the nucleus, at least 1.
__device__ __forceinline__ u64 nucleus_target(float top_p, u64 mass) {
  const u64 needed = u64(ceil(double(max(top_p, 0.0f)) * double(mass)));
  return min(max(needed, u64(1)), mass);
}

// From the sums of all bins: which bins the threshold may lie in. Called by a whole warp; every lane gets the plan.
__device__ __forceinline__ void plan_bins(RowPlan& plan, const Filters& f, const uint32_t* counts, const u64* weights) {
  auto count = [&](int i) { return u64(counts[i]); };
  auto weight = [&](int i) { return weights[i]; };
  const int n = plan.bins + 1;
  const u64 all_weight = warp_total(n, weight);
  const bool cut = f.top_k > 0 && u64(f.top_k) < warp_total(n, count);
  int first = n, last = n;  // where neither filter takes anything, all bins are certain
  u64 mass = all_weight;    // at least this is left by top-k
  if (cut) {
    first = last = warp_find(n, u64(f.top_k), count).index;
    mass = max(warp_total(last, weight), u64(1));
  }
  if (f.top_p < 1.0f) {
    first = warp_find(n, nucleus_target(f.top_p, mass), weight).index;
    if (!cut) last = first;
  }
  const u64 certain_count = warp_total(first, count);
  plan.first_bin = first, plan.last_bin = last;
  plan.certain_weight = warp_total(first, weight);
  plan.rest_weight = all_weight - plan.certain_weight;
  plan.in_question = warp_total(min(last + 1, n), count) - certain_count;
  plan.top_k = cut ? int(u64(f.top_k) - certain_count) : 0;
  if (first == n) plan.state = RowState::kWhole;
}

// Grid (splits, rows), `warps` warps a block. Rows that are not kByBins are left alone.
template <class T>
__global__ void __launch_bounds__(512, 2) gather_kernel(Rows p, Division d, Workspace w) {
  DYNAMIC_SMEM(memory);
  const int row = int(blockIdx.y), slice = int(blockIdx.x);
  if (w.plan[row].state != RowState::kByBins) return;
  RowPlan* const shared = reinterpret_cast<RowPlan*>(memory);
  const Filters f = filters_of(p, row);
  if (threadIdx.x < 32) {
    RowPlan found = w.plan[row];
    plan_bins(found, f, w.bin_count + int64_t(row) * kBins, w.bin_weight + int64_t(row) * kBins);
    if (threadIdx.x == 0) *shared = found;
    if (threadIdx.x == 0 && slice == 0) w.plan[p.rows + row] = found;
  }
  __syncthreads();
  const RowPlan plan = *shared;
  const bool lists = plan.in_question <= u64(d.capacity);
  const RowReader<T> reader(p, w.adjusted, row);
  const int begin = slice * d.slice, end = min(begin + d.slice, d.segments);
  for (int segment = begin + warp_index(); segment < end; segment += d.warps) {
    u64 weight = 0;
    visit_tokens<1>(reader, segment, [&](int index, float value) {
      const uint32_t key = key_of(value, plan.largest, plan.temperature);
      if (key > plan.key_limit) return;
      const int bin = bin_of(key, plan.bins);
      if (bin < plan.first_bin) weight += weight_of(key);
      else if (bin <= plan.last_bin && lists) list_candidate(d, w, row, key, index);
    });
    weight = warp_sum(weight);
    if (lane_index() == 0) w.segment_weight[int64_t(row) * d.segments + segment] = weight;
  }
}

}  // namespace sampling
}  // namespace slipway
