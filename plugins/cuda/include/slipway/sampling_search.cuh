// Where a running sum reaches a target: the one search that top-k, top-p, ties and the draw of a token come down to.
#pragma once
#include <cstdint>

#include "slipway/sampling_weight.cuh"

namespace slipway {
namespace sampling {

constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane_index() { return int(threadIdx.x & 31); }
__device__ __forceinline__ int warp_index() { return int(threadIdx.x >> 5); }
__device__ __forceinline__ int warp_count() { return int(blockDim.x >> 5); }

template <class V>
__device__ __forceinline__ V warp_sum(V value) {
  for (int apart = 16; apart > 0; apart >>= 1) value += __shfl_xor_sync(kAllLanes, value, apart);
  return value;
}

struct Place {
  int index;   // the first at which the running sum, its own value included, is at least the target; n: none
  u64 before;  // the sum of those before it
};

// The place in value(0), ..., value(n - 1) that `target` (at least 1) falls in. Called by a whole warp with equal
// arguments; every lane gets the result. Each lane sums a run of neighbours, then one of them walks through its run.
template <class Value>
__device__ __forceinline__ Place warp_find(int n, u64 target, Value value) {
  const int lane = lane_index(), run = (n + 31) / 32;
  const int begin = min(lane * run, n), end = min(begin + run, n);
  u64 own = 0;
#pragma unroll 4
  for (int i = begin; i < end; i++) own += value(i);
  u64 upto = own;
  for (int apart = 1; apart < 32; apart <<= 1) {
    const u64 left = __shfl_sync(kAllLanes, upto, lane - apart);
    if (lane >= apart) upto += left;
  }
  const uint32_t reached = __ballot_sync(kAllLanes, upto >= target);
  Place place = {n, 0};
  if (reached == 0) return {n, __shfl_sync(kAllLanes, upto, 31)};
  const int owner = __ffs(int(reached)) - 1;
  if (lane == owner) {
    place = {begin, upto - own};
    for (u64 next; place.index < end - 1 && place.before + (next = value(place.index)) < target; place.index++)
      place.before += next;
  }
  place.index = __shfl_sync(kAllLanes, place.index, owner);
  place.before = __shfl_sync(kAllLanes, place.before, owner);
  return place;
}

// value(0) + ... + value(n - 1). Called by a whole warp; every lane gets it.
template <class Value>
__device__ __forceinline__ u64 warp_total(int n, Value value) {
  u64 sum = 0;
  for (int i = lane_index(); i < n; i += 32) sum += value(i);
  return warp_sum(sum);
}

// Sums of 64 bits in shared memory, whose atomic addition is a loop there; in halves it is not.
struct Sums {
  uint32_t *low, *high;  // [count] each, in shared memory
  int count;

  __device__ __forceinline__ Sums(uint32_t* memory, int count) : low(memory), high(memory + count), count(count) {}
  // To initial(i); by all threads of a block.
  template <class Initial>
  __device__ __forceinline__ void start(Initial initial) const {
    for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
      const u64 value = initial(i);
      low[i] = uint32_t(value), high[i] = uint32_t(value >> 32);
    }
  }
  __device__ __forceinline__ void add(int i, u64 value) const {
    const uint32_t own = uint32_t(value), before = atomicAdd(&low[i], own);
    const uint32_t carried = uint32_t(value >> 32) + (before + own < own ? 1 : 0);
    if (carried > 0) atomicAdd(&high[i], carried);
  }
  __device__ __forceinline__ u64 operator[](int i) const { return u64(high[i]) << 32 | low[i]; }
};

constexpr int kDigits = 256;

struct Found {
  uint32_t key;         // the least key at which the running measure reaches the target
  uint32_t count_less;  // elements with a smaller key
  u64 weight_less;      // and their weight
  uint32_t count_same;  // elements with this key
};

struct SearchMemory {  // in shared memory
  uint32_t weight[2 * kDigits];  // of Sums
  uint32_t count[kDigits];
  Found found;
};

enum class Measure { kCount, kWeight };

// Sums of neighbouring elements of one digit, kept in registers until the digit changes: where most elements share
// their upper digits, few atomics are left.
struct DigitRun {
  uint32_t* counts;
  Sums weights;
  uint32_t digit = 0, count = 0;
  u64 weight = 0;

  __device__ __forceinline__ void add(uint32_t d, u64 w) {
    if (d != digit) flush(), digit = d;
    count++, weight += w;
  }
  __device__ __forceinline__ void flush() {
    if (count > 0) atomicAdd(&counts[digit], count);
    if (weight > 0) weights.add(int(digit), weight);
    count = 0, weight = 0;
  }
};

// Finds where the running count or weight of elements in order of their keys reaches `target` (1 to the whole measure),
// in four passes over eight bits of the key each. visit(f) calls f(key, weight) for the elements that the calling
// thread holds, the same ones each time. Called by all threads of a block, which must be whole warps; all get the
// result. What they wrote before to shared memory, all may read in visit.
template <Measure kMeasure, class Visit>
__device__ Found radix_search(SearchMemory* memory, u64 target, Visit visit) {
  const Sums weights(memory->weight, kDigits);
  Found found = {0, 0, 0, 0};
  for (int shift = 24; shift >= 0; shift -= 8) {
    weights.start([](int) { return u64(0); });
    for (int i = int(threadIdx.x); i < kDigits; i += int(blockDim.x)) memory->count[i] = 0;
    __syncthreads();
    DigitRun run{memory->count, weights};
    visit([&](uint32_t key, u64 weight) {
      if (shift < 24 && (key ^ found.key) >> (shift + 8) != 0) return;
      run.add(key >> shift & (kDigits - 1), weight);
    });
    run.flush();
    __syncthreads();
    if (threadIdx.x < 32) {
      auto count = [&](int i) { return u64(memory->count[i]); };
      auto weight = [&](int i) { return weights[i]; };
      const u64 rest = target - (kMeasure == Measure::kCount ? u64(found.count_less) : found.weight_less);
      const Place place = kMeasure == Measure::kCount ? warp_find(kDigits, rest, count)
                                                      : warp_find(kDigits, rest, weight);
      const int digit = min(place.index, kDigits - 1);
      const u64 other = kMeasure == Measure::kCount ? warp_total(digit, weight) : warp_total(digit, count);
      if (threadIdx.x == 0) {
        memory->found = found;
        memory->found.key |= uint32_t(digit) << shift;
        memory->found.count_less += uint32_t(kMeasure == Measure::kCount ? place.before : other);
        memory->found.weight_less += kMeasure == Measure::kCount ? other : place.before;
        memory->found.count_same = memory->count[digit];
      }
    }
    __syncthreads();
    found = memory->found;
  }
  return found;
}

}  // namespace sampling
}  // namespace slipway
