// What a call of paged attention consists of: every phase and form of the kernel takes this.
#pragma once
#include <cstdint>

#include "slipway/attention_plan.cuh"
#include "slipway/masks.cuh"

namespace slipway {

enum class PoolKind { k16Bit, kInt8, kE4M3 };  // k16Bit: the type of the queries

// T is the type of query and output, C that of the pools. New token i of sequence b is row cu_seqlens[b] + i, has
// position past_lens[b] + i and sees the rows of its sequence in the pools up to its own position.
struct PagedAttentionParams {
  const void* query;         // [tokens, heads, key_dim] T, turned by its rotary embedding
  int64_t query_row;         // elements between tokens, a multiple of 8
  const void* key_cache;     // [num_blocks, block_size, kv_heads, key_dim] C
  const void* value_cache;   // [num_blocks, block_size, kv_heads, value_dim] C
  const float* key_scale;    // C 8-bit: keys are this times their 8-bit value. [kv_heads], stride scale_stride, or
  const float* value_scale;  // with token_scales [num_blocks, block_size, kv_heads]; nullptr: 1, and so with 16-bit pools
  int key_scale_stride, value_scale_stride;  // 0: one for all heads
  bool token_scales;

  const int* cu_seqlens;         // [batch + 1]; rows from the last element on are padding: zero output, log_sum_exp -inf
  const int* past_lens;          // [batch]
  const int* block_table;        // [batch, max_blocks], read from a sequence's first visible key to its last
  const void* head_sink;         // [heads] T, a logit that takes part in the softmax and has no value; nullptr: off
  const unsigned char* tree_mask;  // [tokens, max_new]: new token i of a sequence sees the new token j <= i only if
                                   // element [row of i, j] is not 0; nullptr: off
  Mask mask;

  void* output;        // [tokens, heads, value_dim] T
  float* log_sum_exp;  // [tokens, heads] natural logarithm of the denominator, sink included; nullptr: not asked for

  AttentionPlan plan;     // of this step, for `limits`
  AttentionLimits limits;
  float* partial_output;  // [slots, heads, value_dim] sums of exp2(score - maximum) * value
  float* partial_state;   // [slots, heads, 2] maximum of the scores in base 2, sum of exp2(score - maximum)

  int num_blocks, max_blocks, block_shift;  // block_size = 1 << block_shift, 16 to 256
  int key_dim, value_dim;                   // multiples of 8, at most what the kernel is compiled for
  int max_new;
  int stages;  // tiles of keys and values in shared memory, 2 to kMaxStages
};

}  // namespace slipway
