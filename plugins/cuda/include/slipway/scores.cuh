// What happens to the scores of one tile between the product of queries and keys and the softmax: softcap,
// ALiBi, bias, mask. All on accumulators of 16 query rows, see softmax.cuh: h is the half, this lane's row l
// / 4 + 8 * h; `key` is this lane's first key, that of s[0][0].
#pragma once
#include "slipway/masks.cuh"
#include "slipway/numeric.cuh"

namespace slipway {

// Dot products become logits in base 2, if map.changes; else they stay (the softmax multiplies by
// map.factor).
template <int Blocks>
__device__ __forceinline__ void scale_scores(float (&s)[Blocks][4], const ScoreMap& map) {
  if (map.cap > 0.f) {
#pragma unroll
    for (int b = 0; b < Blocks; b++) {
#pragma unroll
      for (int i = 0; i < 4; i++) s[b][i] = map.capped(s[b][i]);
    }
  } else if (map.changes) {
#pragma unroll
    for (int b = 0; b < Blocks; b++) {
#pragma unroll
      for (int i = 0; i < 4; i++) s[b][i] *= map.scale;
    }
  }
}

// slope: times log2(e); position: of the row's query.
template <int Blocks>
__device__ __forceinline__ void add_alibi(float (&s)[Blocks][4], int h, float slope, int position, int key) {
#pragma unroll
  for (int b = 0; b < Blocks; b++) {
#pragma unroll
    for (int i = 0; i < 2; i++) s[b][2 * h + i] -= slope * float(abs(position - (key + 8 * b + i)));
  }
}

// bias: the row's, beginning with key 0; keys: how many it has.
template <class B, int Blocks>
__device__ __forceinline__ void add_bias(float (&s)[Blocks][4], int h, const B* bias, int key, int keys) {
#pragma unroll
  for (int b = 0; b < Blocks; b++) {
#pragma unroll
    for (int i = 0; i < 2; i++)
      if (key + 8 * b + i < keys) s[b][2 * h + i] += to_float(bias[key + 8 * b + i]) * kLog2e;
  }
}

// Keys that the row does not see get -inf.
template <int Blocks>
__device__ __forceinline__ void hide_scores(float (&s)[Blocks][4], int h, KeyRange seen, int key) {
#pragma unroll
  for (int b = 0; b < Blocks; b++) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int at = key + 8 * b + i;
      if (at < seen.begin || at >= seen.end) s[b][2 * h + i] = -INFINITY;
    }
  }
}

}  // namespace slipway
