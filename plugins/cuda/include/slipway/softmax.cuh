// Softmax over keys that come tile by tile (Milakov and Gimelshein, arXiv 1805.02867; FlashAttention-2, arXiv
// 2307.08691), on the accumulators of mma.m16n8k16 and of a warp's part of wgmma: lane l holds, of each block
// of eight keys, row l / 4 in elements 0 and 1 and row l / 4 + 8 in elements 2 and 3; four lanes share a row.
#pragma once
#include "slipway/masks.cuh"
#include "slipway/ptx.cuh"

namespace slipway {

// Max and sum over the four lanes that share a row.
__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// How a row ends: its accumulators times `inverse` are the output. A row without keys has inverse 0.
struct RowEnd {
  float inverse;
  float log_sum_exp;  // natural logarithm of the denominator with the sink; -inf without keys and sink
};

// State of the 16 rows of one warp's tile; everything in base 2. `Shift` moves the probabilities up by
// 2^Shift (so that FP8 holds small ones); it cancels in the result.
template <int Shift = 0>
struct OnlineSoftmax {
  float maximum[2];  // of rows l / 4 and l / 4 + 8
  float sum[2];      // this lane's part

  __device__ __forceinline__ OnlineSoftmax() {
    maximum[0] = maximum[1] = -INFINITY;
    sum[0] = sum[1] = 0.f;
  }

  // Turns the scores of a tile (masked ones -inf) into probabilities relative to the maximum so far.
  // factor: ScoreMap's, > 0. alpha: what the accumulated output of either row must be multiplied by first.
  template <int Blocks>
  __device__ __forceinline__ void update(float (&s)[Blocks][4], float factor, float (&alpha)[2]) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float m = s[0][2 * h];
#pragma unroll
      for (int n = 0; n < Blocks; n++) m = fmaxf(m, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
      m = fmaxf(maximum[h], quad_max(m) * factor);
      const float safe = m == -INFINITY ? 0.f : m;  // a row without keys stays zero, and never -inf + inf
      const float base = safe - Shift;
      alpha[h] = ptx::exp2_approx(maximum[h] - safe);
      maximum[h] = m;
      float part = 0.f;
#pragma unroll
      for (int n = 0; n < Blocks; n++) {
#pragma unroll
        for (int i = 2 * h; i < 2 * h + 2; i++) {
          s[n][i] = ptx::exp2_approx(fmaf(s[n][i], factor, -base));
          part += s[n][i];
        }
      }
      sum[h] = fmaf(sum[h], alpha[h], part);
    }
  }

  // Row l / 4 + 8 * h, after its last tile; all lanes of the warp call it. sink: a logit that takes part in
  // the softmax and has no value, natural units; -INFINITY: none.
  __device__ __forceinline__ RowEnd finish(int h, float sink) const {
    const float keys = quad_sum(sum[h]), sink2 = sink * kLog2e;
    const float top = fmaxf(maximum[h], sink2);
    if (top == -INFINITY) return {0.f, -INFINITY};
    const float weight = ptx::exp2_approx(maximum[h] - top);  // 1 without a sink
    const float total = fmaf(keys, weight, ptx::exp2_approx(sink2 - top + Shift));
    return {weight / total, (top + log2f(total) - Shift) * kLn2};
  }
};

}  // namespace slipway
