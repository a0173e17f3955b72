// The step's own tokens: rotary embedding, scaling of the queries, writing of keys and values into the pools.
#pragma once

#include "vector_math.h"

namespace slipway::cpu {

// Queries are scaled once here. Without softcap the factor to base-2 exponents is folded in as well.
static inline float query_factor(const PagedAttention& call) {
  return call.softcap > 0 ? call.scale : call.scale * kLog2E;
}

// y = x turned by the angles of one position: pairs (a, b) become (a cos - b sin, b cos + a sin).
// x and y may not overlap. Elements from 2 * half on are copied.
template <class S>
inline void turn_head(const float* x, float* y, int size, int half, bool interleaved, const float* cos,
                      const float* sin) {
  if (interleaved) {
    for (int i = 0; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      y[2 * i] = a * cos[i] - b * sin[i];
      y[2 * i + 1] = b * cos[i] + a * sin[i];
    }
  } else {
    for (int i = 0; i < half; i += S::kWidth) {
      const int count = half - i;
      const typename S::V a = load_part<S>(x + i, count), b = load_part<S>(x + half + i, count);
      const typename S::V c = load_part<S>(cos + i, count), s = load_part<S>(sin + i, count);
      store_part<S>(y + i, S::sub(S::mul(a, c), S::mul(b, s)), count);
      store_part<S>(y + half + i, S::add(S::mul(b, c), S::mul(a, s)), count);
    }
  }
  for (int i = 2 * half; i < size; ++i) y[i] = x[i];
}

// `scales`: of each head, for pools of codes; null otherwise.
template <class T>
static inline void write_row(const float* x, T* row, int size, const float* scales, int head) {
  if (scales) {
    const float scale = scales[head];
    for (int i = 0; i < size; ++i) from_float(x[i] / scale, row + i);
    return;
  }
  for (int i = 0; i < size; ++i) from_float(x[i], row + i);
}

// `scratch` holds one head of queries or keys.
template <class S, class T>
inline void prepare_token(const PagedAttention& call, int token, float* scratch) {
  const int head_dim = call.head_dim, half = call.rotary_half;
  const float *cos = nullptr, *sin = nullptr;
  if (half > 0) {
    cos = call.cos + int64_t(call.positions[token]) * half;
    sin = call.sin + int64_t(call.positions[token]) * half;
  }
  const float factor = query_factor(call);
  const int padded = call.padded_head_dim();
  for (int head = 0; head < call.num_heads; ++head) {
    const float* x = call.query + token * call.query_stride + int64_t(head) * head_dim;
    float* y = call.turned_query + (int64_t(token) * call.num_heads + head) * padded;
    turn_head<S>(x, y, head_dim, half, call.rotary_interleaved, cos, sin);
    // Scores of codes want the head's scale as well.
    const float whole = call.key_scales ? factor * call.key_scales[head / call.group()] : factor;
    for (int i = 0; i < head_dim; ++i) y[i] *= whole;
    for (int i = head_dim; i < padded; ++i) y[i] = 0;
  }
  const int64_t slot = call.slots[token];
  if (slot < 0) return;
  for (int head = 0; head < call.kv_heads; ++head) {
    const int64_t row = slot * call.kv_heads + head;
    const float* key = call.key + token * call.key_stride + int64_t(head) * head_dim;
    turn_head<S>(key, scratch, head_dim, half, call.rotary_interleaved, cos, sin);
    write_row(scratch, static_cast<T*>(call.key_cache) + row * head_dim, head_dim, call.key_scales, head);
    const float* value = call.value + token * call.value_stride + int64_t(head) * call.value_dim;
    write_row(value, static_cast<T*>(call.value_cache) + row * call.value_dim, call.value_dim,
              call.value_scales, head);
  }
}

}  // namespace slipway::cpu
