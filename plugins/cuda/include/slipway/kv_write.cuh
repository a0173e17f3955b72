// Writes the step's new keys and values into the pools, with normalization, rotary embedding and quantization
// on the way, and turns the queries in the same launch when they are given.
#pragma once
#include <cstdint>

#include "slipway/rotary.cuh"

namespace slipway {

// T is the type of the new rows (float16, bfloat16, float32), C that of the pools (these, int8, float8 e4m3).
// Strides are in elements; the last axis of every array is contiguous. Arrays that are optional are null when
// absent.
struct KvWriteParams {
  const void* key = nullptr;    // [tokens, kv_heads, key_dim] T
  const void* value = nullptr;  // [tokens, kv_heads, value_dim] T
  int64_t key_token_stride = 0, key_head_stride = 0;
  int64_t value_token_stride = 0, value_head_stride = 0;

  void* key_cache = nullptr;    // [num_blocks, block_size, kv_heads, key_dim] C, contiguous
  void* value_cache = nullptr;  // [num_blocks, block_size, kv_heads, value_dim] C, contiguous
  // [tokens] block * block_size + offset, less than num_slots; negative: the token's key and value are
  // written nowhere (its query is still turned).
  const int32_t* slot_mapping = nullptr;
  int64_t num_slots = 0;  // num_blocks * block_size

  // Rows from *live_tokens on are padding: nothing of them is used or written. Optional: all rows are live.
  // This is &cu_seqlens[batch] of the decoder contract.
  const int32_t* live_tokens = nullptr;

  // Quantized pools hold round(x / scale): either the scales are given, one a head ([kv_heads], or one for
  // all heads: stride 0), or each row's own are computed, max |x| / (127 or 448), and written.
  const float* key_scale = nullptr;    // [kv_heads]
  const float* value_scale = nullptr;  // [kv_heads]
  int64_t key_scale_stride = 0, value_scale_stride = 0;
  float* key_token_scale = nullptr;    // [num_blocks, block_size, kv_heads], written
  float* value_token_scale = nullptr;  // [num_blocks, block_size, kv_heads], written

  RotaryTable rotary;                     // for keys and queries
  const int32_t* position_ids = nullptr;  // [tokens] rows of the tables, 0 to max_positions - 1; with rotary

  // x / sqrt(mean(x^2) + epsilon) * weight over a head, before the rotary embedding. Optional.
  const void* key_norm_weight = nullptr;    // [key_dim] T
  const void* query_norm_weight = nullptr;  // [key_dim] T
  float epsilon = 1e-6f;

  const void* query = nullptr;  // [tokens, heads, key_dim] T; optional, may be query_out itself
  void* query_out = nullptr;    // [tokens, heads, key_dim] T
  int64_t query_token_stride = 0, query_head_stride = 0;
  int64_t query_out_token_stride = 0, query_out_head_stride = 0;

  int tokens = 0, kv_heads = 0, heads = 0;  // heads: of the query, 0 when there is none
  int key_dim = 0, value_dim = 0;           // 1 to kMaxKvHeadSize
};
constexpr int kMaxKvHeadSize = 512;

}  // namespace slipway
