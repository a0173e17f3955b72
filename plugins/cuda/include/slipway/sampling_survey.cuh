// First pass over the logits: adjustments, and the largest value of each slice and of each group of tokens.
#pragma once
#include <cstdint>

#include "slipway/sampling_rows.cuh"

namespace slipway {
namespace sampling {

constexpr int kBins = 1024;  // by distance, 32 a nat: tokens from 32 nats on weigh nothing

// What the kernels of one call hand to each other; contents are undefined before.
struct Workspace {
  float* adjusted;           // [rows, vocab], NULL when no row can be adjusted
  SliceMaximum* slice_max;   // [rows, splits]
  float* group_max;          // [rows, groups]
  uint32_t* bin_count;       // [rows, kBins]
  u64* bin_weight;           // [rows, kBins]
  u64* segment_weight;       // [rows, segments]: of tokens that are certainly kept
  uint32_t* candidate_count; // [rows]; may be more than capacity: then the list is not whole, and not read
  uint2* candidates;         // [rows, capacity]: key, index
  struct RowPlan* plan;      // [2, rows]: of collect_kernel, of gather_kernel (where the state is kByBins)
};

// Of two largest values: the larger one, or the one of the smaller index.
__device__ __forceinline__ void take_larger(SliceMaximum& a, const SliceMaximum& b) {
  if (b.value > a.value || (b.value == a.value && b.index < a.index)) a.value = b.value, a.index = b.index;
  a.unusable |= b.unusable;
}
__device__ __forceinline__ SliceMaximum warp_larger(SliceMaximum own) {
  for (int apart = 16; apart > 0; apart >>= 1) {
    SliceMaximum other;
    other.value = __shfl_xor_sync(kAllLanes, own.value, apart);
    other.index = __shfl_xor_sync(kAllLanes, own.index, apart);
    other.unusable = __shfl_xor_sync(kAllLanes, own.unusable, apart);
    take_larger(own, other);
  }
  return own;
}

constexpr SliceMaximum kNothing = {-INFINITY, kMaxVocab, 0};

// Shared memory of the survey: a maximum a warp, and a bit for each token of the slice: whether it has a bias.
__host__ __device__ inline int survey_shared_bytes(const Rows& p, const Division& d) {
  return d.warps * int(sizeof(SliceMaximum)) + (p.bias_length > 0 ? d.slice * kSegment / 8 : 0);
}

__device__ __forceinline__ float adjusted_logit(const Adjustments& a, const uint32_t* biased, int slice_begin,
                                                int bias_length, int index, float value) {
  if (a.bias_ids != nullptr && (biased[(index - slice_begin) / 32] >> (index % 32) & 1))
    for (int i = 0; i < bias_length && a.bias_ids[i] >= 0; i++)
      if (a.bias_ids[i] == index) value = __fadd_rn(value, a.bias_values[i]);
  if (a.counts != nullptr) {
    const int count = a.counts[index], times = count & 0x7fff;
    if (count != 0) value = value > 0 ? __fdiv_rn(value, a.repetition) : __fmul_rn(value, a.repetition);
    if (times > 0) value = __fsub_rn(__fmaf_rn(-a.frequency, float(times), value), a.presence);
  }
  if (a.allowed != nullptr && !(a.allowed[index / 32] >> (index % 32) & 1)) value = -INFINITY;
  return value;
}

// Grid (splits, rows), `warps` warps a block.
template <class T>
__global__ void __launch_bounds__(512, 2) survey_kernel(Rows p, Division d, Workspace w) {
  DYNAMIC_SMEM(memory);
  SliceMaximum* const of_warps = reinterpret_cast<SliceMaximum*>(memory);
  uint32_t* const biased = reinterpret_cast<uint32_t*>(of_warps + d.warps);
  const int row = int(blockIdx.y), slice = int(blockIdx.x);
  const int begin = slice * d.slice, end = min(begin + d.slice, d.segments);
  const int begin_token = begin * kSegment;
  const int thread = int(blockIdx.x * blockDim.x + threadIdx.x), threads = int(gridDim.x * blockDim.x);

  // What later kernels add to.
  if (thread == 0) w.candidate_count[row] = 0;
  for (int i = thread; i < kBins; i += threads)
    w.bin_count[int64_t(row) * kBins + i] = 0, w.bin_weight[int64_t(row) * kBins + i] = 0;

  const Adjustments a = adjustments_of(p, row);
  if (a.bias_ids != nullptr) {
    for (int i = int(threadIdx.x); i < d.slice * kSegment / 32; i += int(blockDim.x)) biased[i] = 0;
    __syncthreads();
    for (int i = int(threadIdx.x); i < p.bias_length; i += int(blockDim.x)) {
      const int place = a.bias_ids[i] - begin_token;
      if (place >= 0 && place < d.slice * kSegment) atomicOr(&biased[place / 32], 1u << place % 32);
    }
    __syncthreads();
  }

  const bool adjusts = a.any();
  const RowReader<T> reader(p, nullptr, row);
  SliceMaximum own = kNothing;
  auto take = [&](int index, float value) {
    own.unusable |= !(value < INFINITY);  // NaN too
    if (value > own.value) own.value = value, own.index = index;
  };
  for (int segment = begin + warp_index(); segment < end; segment += d.warps) {
    if (!adjusts) {
      visit_tokens<4>(reader, segment, take);
      continue;
    }
    visit_tokens<1>(reader, segment, [&](int index, float value) {
      own.unusable |= !(value < INFINITY);
      value = adjusted_logit(a, biased, begin_token, p.bias_length, index, value);
      w.adjusted[int64_t(row) * p.vocab + index] = value;
      take(index, value);
    });
  }

  float group = own.value;
  for (int apart = 1; apart < d.group_lanes; apart <<= 1)
    group = fmaxf(group, __shfl_xor_sync(kAllLanes, group, apart));
  if (lane_index() % d.group_lanes == 0)
    w.group_max[int64_t(row) * d.groups + thread / d.group_lanes] = group;

  own = warp_larger(own);
  if (lane_index() == 0) of_warps[warp_index()] = own;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < d.warps; i++) take_larger(own, of_warps[i]);
    w.slice_max[int64_t(row) * d.splits + slice] = own;
  }
}

}  // namespace sampling
}  // namespace slipway
