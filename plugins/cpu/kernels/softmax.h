// Softmax over key tiles as they come (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867): the
// running maximum and sum of one row, in base 2. Tiles are cut at fixed positions of the sequence, so a row's
// sums are always taken in the same order.
#pragma once

#include "vector_math.h"

namespace slipway::cpu {

// What happens to the scores of one query head between product and softmax.
struct ScoreRule {
  float softcap = 0;                 // 0: off
  float alibi_slope = 0;             // times log2(e); 0: off
  const float* bias_row = nullptr;   // the head's, as lay_out_distance_bias made it; null: off
  int distances = 0;
};

static inline ScoreRule score_rule(const PagedAttention& call, int head) {
  ScoreRule rule;
  rule.softcap = call.softcap;
  if (call.alibi_slopes) rule.alibi_slope = call.alibi_slopes[head] * kLog2E;
  if (call.bias_rows) rule.bias_row = call.bias_rows + int64_t(head) * bias_row_size(call.distances);
  rule.distances = call.distances;
  return rule;
}

// The softmax state of a row before any key: a sink is one more score that has no value.
template <class S>
inline void start_row(const PagedAttention& call, int head, float* maximum, float* sums) {
  for (int i = 0; i < S::kWidth; ++i) sums[i] = 0;
  *maximum = kNoScore;
  if (call.sinks) {
    *maximum = call.sinks[head] * kLog2E;
    sums[0] = 1;
  }
}

// Turns kKeyTile scores of one row into weights relative to the running maximum, and updates maximum and
// sums. Keys [begin, end) of the tile are visible, the others get weight 0. `distance` is the position of the
// tile's first key minus that of the query. Returns the factor for what was summed up before.
template <class S>
inline float absorb_scores(const ScoreRule& rule, float* scores, int begin, int end, int distance,
                           float* maximum, float* sums) {
  using V = typename S::V;
  constexpr int W = S::kWidth;
  if (begin >= end) {
    for (int i = 0; i < kKeyTile; i += W) S::store(scores + i, S::zero());
    return 1.0f;
  }
  const bool whole = begin == 0 && end == kKeyTile;
  const float* bias = nullptr;  // of the tile's first key; a tile of far keys alone is the row's first one
  if (rule.bias_row) {
    const int first = kKeyTile + rule.distances - 1 + distance;
    bias = rule.bias_row + (first > 0 ? first : 0);
  }
  V largest = S::set1(kNoScore);
  for (int i = 0; i < kKeyTile; i += W) {
    V x = S::load(scores + i);
    if (rule.softcap > 0) {
      x = S::mul(S::set1(rule.softcap * kLog2E), tanh<S>(S::mul(x, S::set1(1.0f / rule.softcap))));
    }
    if (rule.alibi_slope != 0) {
      x = S::fma(S::set1(rule.alibi_slope), S::add(S::iota(), S::set1(float(distance + i))), x);
    }
    if (bias) x = S::add(x, S::load(bias + i));
    if (!whole) x = S::within(x, S::set1(kNoScore), begin - i, end - i);
    if (!whole || rule.softcap > 0 || rule.alibi_slope != 0 || bias) S::store(scores + i, x);
    largest = S::max(largest, x);
  }
  const float before = *maximum, tile_maximum = S::maximum(largest);
  const float after = before > tile_maximum ? before : tile_maximum;
  float factor = 1.0f;
  V sum = S::load(sums);
  if (after != before) {
    factor = S::sum(S::within(exp2<S>(S::set1(before - after)), S::zero(), 0, 1));
    sum = S::mul(sum, S::set1(factor));
    *maximum = after;
  }
  for (int i = 0; i < kKeyTile; i += W) {
    V e = exp2<S>(S::sub(S::load(scores + i), S::set1(after)));
    if (!whole) e = S::within(e, S::zero(), begin - i, end - i);
    S::store(scores + i, e);
    sum = S::add(sum, e);
  }
  S::store(sums, sum);
  return factor;
}

// What one unit of a value head's rows in the cache stands for.
static inline float value_scale(const PagedAttention& call, int kv_head) {
  return call.value_scales ? call.value_scales[kv_head] : 1.0f;
}

template <class S>
inline void scale_row(float* row, int size, float factor) {
  for (int i = 0; i < size; i += S::kWidth) S::store(row + i, S::mul(S::load(row + i), S::set1(factor)));
}

// output = row / sum of weights * scale; `scale` is what one unit of the values stands for.
template <class S>
inline void finish_row(const float* row, const float* sums, int size, float* output, float scale = 1.0f) {
  const typename S::V inverse = S::set1(scale / S::sum(S::load(sums)));
  for (int i = 0; i < size; i += S::kWidth) {
    store_part<S>(output + i, S::mul(S::load(row + i), inverse), size - i);
  }
}

// Slots of `count` consecutive positions from `first` on. Positions outside [low, high) are not looked up in
// the block table (it may hold -1 there): they repeat the slot of the nearest position inside, and their
// scores are masked. At least one position lies inside.
static inline void find_slots(const PagedAttention& call, int sequence, int first, int count, int low,
                              int high, int64_t* slots) {
  const int32_t* blocks = call.block_table + int64_t(sequence) * call.max_blocks;
  const int begin = low > first ? low - first : 0;
  const int end = high - first < count ? high - first : count;
  int block = (first + begin) / call.block_size, offset = (first + begin) % call.block_size;
  for (int i = begin; i < end; ++block, offset = 0) {
    const int64_t base = int64_t(blocks[block]) * call.block_size;
    for (; i < end && offset < call.block_size; ++i, ++offset) slots[i] = base + offset;
  }
  for (int i = 0; i < begin; ++i) slots[i] = slots[begin];
  for (int i = end; i < count; ++i) slots[i] = slots[end - 1];
}

}  // namespace slipway::cpu
