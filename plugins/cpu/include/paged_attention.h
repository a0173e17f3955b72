// slipway::PagedAttention on raw pointers: what a call is given, how it is checked and cut into work items.
//
// No framework here: ort_op.cpp and the sanitizer program are two callers of the same code.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace slipway::cpu {

// Elements of pools as they lie in memory: 16-bit floating point, and codes that a head's scale is a factor of.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
struct Int8 {
  int8_t code;
};
struct E4m3 {
  uint8_t code;  // sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinity, 0x7F and 0xFF are NaN
};

enum class CacheType { kFloat32, kFloat16, kBFloat16, kInt8, kE4m3 };

inline bool holds_codes(CacheType type) { return type == CacheType::kInt8 || type == CacheType::kE4m3; }

// One call. Sizes are elements. Shapes as in plugins/schemas.py; all arrays are dense and row-major, except
// that a row of query, key and value may be a part of a wider row (packed QKV): hence the strides.
struct PagedAttention {
  int tokens = 0;  // rows of query; rows from cumulative_lengths[batch] on are padding
  int batch = 0;
  int max_blocks = 0;
  int num_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;   // of queries and keys
  int value_dim = 0;  // of values and output
  int block_size = 0;
  int num_blocks = 0;
  int rotary_half = 0;  // rotary_dim / 2; 0: no rotary embedding
  int max_positions = 0;
  bool rotary_interleaved = false;
  int window = -1;     // a query sees this many last keys, its own included; -1: all
  float scale = 1.0f;  // factor of the scores
  float softcap = 0.0f;
  CacheType cache_type = CacheType::kFloat32;

  const float* query = nullptr;  // [tokens, num_heads, head_dim]
  const float* key = nullptr;    // [tokens, kv_heads, head_dim]
  const float* value = nullptr;  // [tokens, kv_heads, value_dim]
  int64_t query_stride = 0;      // elements from one token to the next
  int64_t key_stride = 0;
  int64_t value_stride = 0;

  void* key_cache = nullptr;                    // [num_blocks, block_size, kv_heads, head_dim] of cache_type
  void* value_cache = nullptr;                  // [num_blocks, block_size, kv_heads, value_dim] of cache_type
  const int32_t* cumulative_lengths = nullptr;  // [batch + 1], first 0, not decreasing, last <= tokens
  const int32_t* past_lengths = nullptr;        // [batch]
  const int32_t* block_table = nullptr;         // [batch, max_blocks]
  const int32_t* slots = nullptr;               // [tokens], -1: not written
  const int32_t* positions = nullptr;           // [tokens], with rotary
  const float* cos = nullptr;                   // [max_positions, rotary_half]
  const float* sin = nullptr;                   // [max_positions, rotary_half]
  const float* key_scales = nullptr;            // [kv_heads], pools of codes only: key = code * scale
  const float* value_scales = nullptr;          // [kv_heads]
  const float* sinks = nullptr;                 // [num_heads] or null
  const float* alibi_slopes = nullptr;          // [num_heads] or null
  const float* distance_bias = nullptr;         // [num_heads, distances] or null, by query minus key position
  int distances = 0;                            // the last one stands for all that are larger

  const float* bias_rows = nullptr;  // scratch that lay_out_distance_bias filled; null without distance_bias
  float* turned_query = nullptr;  // scratch [tokens, num_heads, padded_head_dim()], see prepare.h
  float* output = nullptr;        // [tokens, num_heads, value_dim]

  int group() const { return num_heads / kv_heads; }
  int live_tokens() const { return cumulative_lengths[batch]; }
  int new_tokens(int sequence) const {
    return cumulative_lengths[sequence + 1] - cumulative_lengths[sequence];
  }
  // Queries lie in scratch rows padded with zeros to a whole number of the widest vectors.
  int padded_head_dim() const { return (head_dim + 15) / 16 * 16; }
};

// The scores' natural exponentials are computed as powers of two.
constexpr float kLog2E = 1.4426950408889634f;

// Keys between two updates of a row's softmax state.
constexpr int kKeyTile = 64;

// Largest head size of keys; queries of a head lie in scratch on the stack.
constexpr int kMaxHeadDim = 1024;

// One piece of work: `rows` consecutive tokens of one sequence with `kv_heads` key heads from first_kv_head
// on. A sequence with one new token is attended by the decode kernel, every other by the prefill kernel. Both
// sum in the same order with the same instructions, so neither company nor chunking changes a bit.
struct WorkItem {
  int sequence;
  int first_token;
  int rows;
  int first_kv_head;
  int kv_heads;
};

// Checks what the kernels rely on: sizes, and every index of this call (block ids, slots, lengths,
// positions). Returns an empty string, or what is wrong in words.
std::string find_problem(const PagedAttention& call);

// Writes distance_bias as base-2 exponents to `rows`, and points the call to them. A head's row has its distances from
// far to near, so that the bias of keys one after the other lies in order, and a tile more at either end.
void lay_out_distance_bias(PagedAttention& call, std::vector<float>& rows);
inline int bias_row_size(int distances) { return distances + 2 * kKeyTile; }

// Work items of a call, longest first. `threads` only decides how finely the work is cut.
void plan_work(const PagedAttention& call, int threads, std::vector<WorkItem>& items);

}  // namespace slipway::cpu
