// slipway::PackedAttention on raw pointers: attention within texts that lie one after the other.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace slipway::cpu {

// One call. Sizes are elements. Shapes as in plugins/schemas.py; rows of query, key and value may be parts of
// wider rows (packed QKV): hence the strides.
struct PackedAttention {
  int tokens = 0;
  int batch = 0;
  int num_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;   // of queries and keys
  int value_dim = 0;  // of values and output
  int left = -1;      // a query sees so many tokens before its own; -1: all
  int right = -1;     // and so many behind it
  float scale = 1.0f;
  int rotary_half = 0;  // rotary_dim / 2; 0: no rotary embedding
  int max_positions = 0;
  bool rotary_interleaved = false;
  int bias_heads = 0;  // 1 or num_heads, with a bias
  int bias_size = 0;

  const float* query = nullptr;  // [tokens, num_heads, head_dim]
  const float* key = nullptr;    // [tokens, kv_heads, head_dim]
  const float* value = nullptr;  // [tokens, kv_heads, value_dim]
  int64_t query_stride = 0;      // elements from one token to the next
  int64_t key_stride = 0;
  int64_t value_stride = 0;

  const int32_t* cumulative_lengths = nullptr;  // [batch + 1], first 0, not decreasing, last <= tokens
  const float* bias = nullptr;                  // [bias_heads, bias_size, bias_size] or null
  const int32_t* positions = nullptr;           // [tokens], with rotary
  const float* cos = nullptr;                   // [max_positions, rotary_half]
  const float* sin = nullptr;                   // [max_positions, rotary_half]

  float* turned_key = nullptr;  // scratch [tokens, kv_heads, head_dim], with rotary
  float* output = nullptr;      // [tokens, num_heads, value_dim]

  int group() const { return num_heads / kv_heads; }
  int live_tokens() const { return cumulative_lengths[batch]; }
  int length(int text) const { return cumulative_lengths[text + 1] - cumulative_lengths[text]; }
};

// One piece of work: `rows` consecutive tokens of a text, from its token `first` on, with one key head.
struct PackedItem {
  int text, first, rows, kv_head;
};

// Checks what the kernels rely on. Returns an empty string, or what is wrong in words.
std::string find_problem(const PackedAttention& call);

// Work items of a call, longest first. `threads` only decides how finely the work is cut.
void plan_work(const PackedAttention& call, int threads, std::vector<PackedItem>& items);

}  // namespace slipway::cpu
