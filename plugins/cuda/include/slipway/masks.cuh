// Which keys a query sees, and what happens to its scores before the softmax. Shared by all attention
// kernels.
//
// Positions count within a sequence, from its first key. The queries are the sequence's last positions
// ("lower right"): row i of len_q queries before len_k keys has position i + len_k - len_q, which is negative
// for the first rows when there are more queries than keys.
#pragma once
#include <cstdint>

#include "slipway/ptx.cuh"

namespace slipway {

constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

struct Mask {
  int window_left;            // w: a query sees the w last keys, its own included; -1: all before it
  int window_right;           // w: and the w next ones; 0 is causal; -1: all after it
  float scale;                // > 0: factor of the dot products
  float softcap;              // c: score = c * tanh(score / c) (Gemma 2); 0: off
  const float* alibi_slopes;  // [heads], score -= slope * |position - key| (arXiv 2108.12409); nullptr: off
};
constexpr int kMaxWindow = 1 << 30;  // positions are smaller than this, so that position +- window is an int

struct KeyRange {
  int begin, end;  // begin >= end: no key
};

// Keys that the query at `position` sees, of `length` keys.
__device__ __forceinline__ KeyRange visible_keys(const Mask& mask, int position, int length) {
  return {mask.window_left < 0 ? 0 : max(0, position - mask.window_left + 1),
          mask.window_right < 0 ? length : min(length, position + mask.window_right + 1)};
}
// Keys that any of the queries from position `first` to `last` sees: those a tile of them must visit.
__device__ __forceinline__ KeyRange visited_keys(const Mask& mask, int first, int last, int length) {
  return {visible_keys(mask, first, length).begin, visible_keys(mask, last, length).end};
}
// Keys that all of them see: a tile of keys within this range needs no mask.
__device__ __forceinline__ KeyRange common_keys(const Mask& mask, int first, int last, int length) {
  return {visible_keys(mask, last, length).begin, visible_keys(mask, first, length).end};
}

// From dot products to logits in base 2 (the softmax takes exp2). When nothing but the scale applies, the dot
// products stay as they are and the softmax multiplies by `factor` on the way; else they are mapped first
// (see scores.cuh), and `factor` is 1. Order: scale, softcap, ALiBi, bias.
struct ScoreMap {
  float factor;     // what the softmax has still to multiply by
  bool changes;     // scores must be mapped
  float scale;      // scale * log2(e)
  float cap;        // softcap * log2(e); 0: off
  float cap_inner;  // 2 * log2(e) * scale / softcap

  // `scale_`: of the dot products, with what dequantizes them; has_bias: something is added to the logits
  // later.
  __device__ __forceinline__ ScoreMap(const Mask& mask, float scale_, bool has_bias) {
    scale = scale_ * kLog2e;
    cap = mask.softcap * kLog2e;
    cap_inner = mask.softcap > 0.f ? 2.f * kLog2e * scale_ / mask.softcap : 0.f;
    changes = mask.softcap > 0.f || mask.alibi_slopes != nullptr || has_bias;
    factor = changes ? 1.f : scale;
  }

  // tanh(x) = 1 - 2 / (exp(2x) + 1): exact at both ends, and good to 1e-7 of the cap between them.
  __device__ __forceinline__ float capped(float product) const {
    return cap - 2.f * cap * __fdividef(1.f, ptx::exp2_approx(product * cap_inner) + 1.f);
  }
};

}  // namespace slipway
