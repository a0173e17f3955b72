// Random numbers without state: Philox4x64-10, a function of a key and a counter.
//
// Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The key is a request's seed and the counter an
// output position, so preemption, speculation and company never change a seeded result. Word 0 is the number that
// chooses a token (the CPU runtime's), word 1 the one that accepts or rejects a draft of the same position.
#pragma once
#include <cstdint>

#include "slipway/ptx.cuh"

namespace slipway {

using u64 = unsigned long long;  // what CUDA's 64-bit atomics and shuffles take

struct PhiloxWords {
  u64 word[4];
};

__device__ __forceinline__ PhiloxWords philox(u64 seed, u64 position) {
  constexpr u64 kMultipliers[2] = {0xD2E7470EE14C6C93ull, 0xCA5A826395121157ull};
  constexpr u64 kWeyl[2] = {0x9E3779B97F4A7C15ull, 0xBB67AE8584CAA73Bull};
  PhiloxWords w = {{position, 0, 0, 0}};
  u64 low_key = seed, high_key = 0;
  for (int round = 0; round < 10; round++) {
    const u64 left_high = __umul64hi(kMultipliers[0], w.word[0]), left = kMultipliers[0] * w.word[0];
    const u64 right_high = __umul64hi(kMultipliers[1], w.word[2]), right = kMultipliers[1] * w.word[2];
    w = {{right_high ^ w.word[1] ^ low_key, right, left_high ^ w.word[3] ^ high_key, left}};
    low_key += kWeyl[0], high_key += kWeyl[1];
  }
  return w;
}

// floor(number * total), where number in [0, 1) is a word's upper 53 bits over 2^53. Exact; below total (total < 2^63).
__device__ __forceinline__ u64 random_below(u64 word, u64 total) {
  const u64 number = word >> 11;
  return __umul64hi(number, total) << 11 | (number * total) >> 53;
}
// The number itself.
__device__ __forceinline__ double random_number(u64 word) { return double(word >> 11) * 0x1p-53; }

}  // namespace slipway
