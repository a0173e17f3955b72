// What a call of flash_attention consists of; every form of the kernel takes this.
#pragma once
#include <cstdint>

#include "slipway/masks.cuh"

namespace slipway {

// Sequence b has rows cu_seqlens_q[b] to cu_seqlens_q[b + 1] of query and output, and rows cu_seqlens_k[b] to
// cu_seqlens_k[b + 1] of key and value. Query head h reads key head h / (heads / kv_heads).
struct FlashAttentionParams {
  const void* query;  // [tokens_q, heads, head_dim]; strides in elements, all multiples of 16 bytes
  const void* key;    // [tokens_k, kv_heads, head_dim]
  const void* value;  // [tokens_k, kv_heads, value_dim]
  int64_t query_row, query_head, key_row, key_head, value_row, value_head;
  void* output;        // [tokens_q, heads, value_dim], contiguous; zero where no key is seen
  float* log_sum_exp;  // [heads, tokens_q], natural logarithm of the softmax's denominator; or nullptr

  const int* cu_seqlens_q;  // [batch + 1], first 0, never decreasing, last at most tokens_q; rows from the
                            // last element on belong to no sequence: output 0, log_sum_exp -inf
  const int* cu_seqlens_k;  // [batch + 1], the same for keys; what lies beyond the last is never read

  Mask mask;
  // Added to the scores; [batch, heads, max_q, max_k] by row within the sequence, stride 1 on the last axis
  // and 0 on axes of size 1; -inf hides a key. No sequence is longer than max_q and max_k. nullptr: off.
  const void* bias;
  int64_t bias_batch, bias_head, bias_query;
  int max_q, max_k;
  bool bias_is_float32;   // else it has output's type
  const void* head_sink;  // [heads], a logit that takes part in the softmax and has no value; nullptr: off
  bool sink_is_float32;   // else it has output's type

  const float* query_scale;  // [heads], FP8 only: query = query_scale * its E4M3 value; nullptr: 1
  const float* key_scale;    // [kv_heads]
  const float* value_scale;  // [kv_heads]

  int batch, tokens_q, tokens_k, heads, kv_heads;
  int head_dim, value_dim;  // multiples of 16 bytes, at most what the kernel is compiled for
};

}  // namespace slipway
