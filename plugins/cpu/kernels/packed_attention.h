// Attention within packed texts: tiles of queries against tiles of keys, as in prefill.h, with keys on both
// sides of a query and a bias of the scores. A row's sums are taken over tiles cut at fixed positions of its
// text, so its bits depend on its text alone.
#pragma once

#include "packed_attention.h"
#include "prefill.h"
#include "prepare.h"

namespace slipway::cpu {

// Turned keys of tokens [first, last); queries are turned where they are read.
template <class S>
void turn_packed_keys(const PackedAttention& call, int first, int last) {
  const int half = call.rotary_half;
  for (int token = first; token < last; ++token) {
    const int64_t angle = int64_t(call.positions[token]) * half;
    for (int head = 0; head < call.kv_heads; ++head) {
      turn_head<S>(call.key + token * call.key_stride + int64_t(head) * call.head_dim,
                   call.turned_key + (int64_t(token) * call.kv_heads + head) * call.head_dim, call.head_dim,
                   half, call.rotary_interleaved, call.cos + angle, call.sin + angle);
    }
  }
}

// An item's sizes and the scratch it works in. Row r is query head r % group of the item's token r / group.
struct PackedChunk {
  int group, rows, padded_rows, head_dim, query_stride, value_stride;
  int start;           // first token of the text
  int length;          // of the text
  int first_position;  // of the item's first token, in its text
  int first_head;      // query head of row 0
  int left, right;
  float* keys;    // [head_dim][kKeyTile]
  float* values;  // [kKeyTile][value_stride]
  float* query;   // [padded_rows][query_stride]
  float* scores;  // [padded_rows][kKeyTile]
  float* output;  // [padded_rows][value_stride]
  float* sums;    // [padded_rows][W]
  float* maxima;  // [padded_rows]

  int position(int row) const { return first_position + row / group; }
  // The first key that a position sees, and the one behind the last.
  int low(int position) const { return left < 0 || position < left ? 0 : position - left; }
  int high(int position) const {
    return right < 0 || length - position <= right ? length : position + right + 1;
  }
  // Keys of the tile that a row sees: [begin, end).
  int begin(int row, int tile) const {
    const int first = low(position(row)) - tile;
    return first > 0 ? first : 0;
  }
  int end(int row, int tile) const {
    const int last = high(position(row)) - tile;
    return last < kKeyTile ? last : kKeyTile;
  }
};

// Queries of the item: turned, scaled to base-2 exponents, padded with zeros.
template <class S>
inline void read_queries(const PackedAttention& call, const PackedChunk& chunk) {
  const float factor = call.scale * kLog2E;
  for (int r = 0; r < chunk.padded_rows; ++r) {
    float* to = chunk.query + int64_t(r) * chunk.query_stride;
    int filled = 0;
    if (r < chunk.rows) {
      const int64_t token = chunk.start + chunk.position(r);
      const float* from = call.query + token * call.query_stride +
                          int64_t(chunk.first_head + r % chunk.group) * call.head_dim;
      if (call.rotary_half > 0) {
        const int64_t angle = int64_t(call.positions[token]) * call.rotary_half;
        turn_head<S>(from, to, call.head_dim, call.rotary_half, call.rotary_interleaved, call.cos + angle,
                     call.sin + angle);
        from = to;
      }
      for (; filled < call.head_dim; ++filled) to[filled] = from[filled] * factor;
    }
    for (; filled < chunk.query_stride; ++filled) to[filled] = 0;
  }
}

// Sizes and scratch of an item; false when there is no memory.
template <class S>
inline bool start_packed(const PackedAttention& call, const PackedItem& item, PackedChunk* chunk) {
  constexpr int W = S::kWidth, kRowBlock = S::kScoreRows;
  chunk->group = call.group();
  chunk->rows = item.rows * chunk->group;
  chunk->padded_rows = (chunk->rows + kRowBlock - 1) / kRowBlock * kRowBlock;
  chunk->head_dim = call.head_dim;
  chunk->query_stride = (call.head_dim + 15) / 16 * 16;
  chunk->value_stride = (call.value_dim + W - 1) / W * W;
  chunk->start = call.cumulative_lengths[item.text];
  chunk->length = call.length(item.text);
  chunk->first_position = item.first;
  chunk->first_head = item.kv_head * chunk->group;
  chunk->left = call.left;
  chunk->right = call.right;

  const int64_t rows = chunk->padded_rows;
  float* scratch = thread_scratch(rows * (chunk->query_stride + kKeyTile + chunk->value_stride + W + 1) +
                                  int64_t(kKeyTile) * (chunk->head_dim + chunk->value_stride));
  if (!scratch) return false;
  chunk->keys = scratch;
  chunk->values = chunk->keys + chunk->head_dim * kKeyTile;
  chunk->query = chunk->values + kKeyTile * chunk->value_stride;
  chunk->scores = chunk->query + rows * chunk->query_stride;
  chunk->output = chunk->scores + rows * kKeyTile;
  chunk->sums = chunk->output + rows * chunk->value_stride;
  chunk->maxima = chunk->sums + rows * W;
  read_queries<S>(call, *chunk);
  for (int64_t i = 0; i < rows * chunk->value_stride; ++i) chunk->output[i] = 0;
  for (int64_t i = 0; i < rows * W; ++i) chunk->sums[i] = 0;
  for (int64_t i = 0; i < rows; ++i) chunk->maxima[i] = kNoScore;
  // Rows of padding in a block get weights too; they are multiplied, and thrown away.
  for (int64_t i = 0; i < rows * kKeyTile; ++i) chunk->scores[i] = 0;
  return true;
}

// scores [begin, end) of one row += bias, as base-2 exponents.
template <class S>
inline void add_bias(const float* bias, int begin, int end, float* scores) {
  constexpr int W = S::kWidth;
  for (int i = begin / W * W; i < end; i += W) {
    S::store(scores + i, S::fma(load_part<S>(bias + i, end - i), S::set1(kLog2E), S::load(scores + i)));
  }
}

// One block of rows against one tile of keys.
template <class S>
inline void attend_packed_block(const PackedAttention& call, const PackedChunk& chunk, int block, int tile) {
  constexpr int W = S::kWidth, kRowBlock = S::kScoreRows, kKeys = W * S::kScoreVectors;
  const int block_end = block + kRowBlock < chunk.rows ? block + kRowBlock : chunk.rows;
  // What the block's first row sees begins first, what its last row sees ends last.
  const int begin = chunk.begin(block, tile), end = chunk.end(block_end - 1, tile);
  if (begin >= end) return;
  for (int key = begin / kKeys * kKeys; key < end; key += kKeys) {
    score_block<S>(chunk.query + int64_t(block) * chunk.query_stride, chunk.query_stride, chunk.keys + key,
                   chunk.head_dim, chunk.scores + block * kKeyTile + key);
  }
  for (int r = block; r < block_end; ++r) {
    float* scores = chunk.scores + r * kKeyTile;
    if (call.bias) {
      const int64_t head = call.bias_heads == 1 ? 0 : chunk.first_head + r % chunk.group;
      const float* row = call.bias + (head * call.bias_size + chunk.position(r)) * call.bias_size + tile;
      add_bias<S>(row, chunk.begin(r, tile), chunk.end(r, tile), scores);
    }
    const float factor = absorb_scores<S>(ScoreRule{}, scores, chunk.begin(r, tile),
                                          chunk.end(r, tile), 0, chunk.maxima + r, chunk.sums + r * W);
    if (factor != 1.0f)
      scale_row<S>(chunk.output + int64_t(r) * chunk.value_stride, chunk.value_stride, factor);
  }
  for (int r = block; r < block_end; r += S::kValueRows) {
    const float* weights = chunk.scores + r * kKeyTile + begin;
    const float* values = chunk.values + begin * chunk.value_stride;
    float* output = chunk.output + int64_t(r) * chunk.value_stride;
    int d = 0;
    for (; d + W * S::kValueVectors <= chunk.value_stride; d += W * S::kValueVectors) {
      value_block<S, S::kValueVectors>(weights, values + d, chunk.value_stride, end - begin, output + d,
                                       chunk.value_stride);
    }
    for (; d + W * 2 <= chunk.value_stride; d += W * 2) {
      value_block<S, 2>(weights, values + d, chunk.value_stride, end - begin, output + d, chunk.value_stride);
    }
    for (; d < chunk.value_stride; d += W) {
      value_block<S, 1>(weights, values + d, chunk.value_stride, end - begin, output + d, chunk.value_stride);
    }
  }
}

// One work item, after the keys were turned. False: no memory for scratch.
template <class S>
bool attend_packed(const PackedAttention& call, const PackedItem& item) {
  constexpr int W = S::kWidth, kRowBlock = S::kScoreRows;
  PackedChunk chunk;
  if (!start_packed<S>(call, item, &chunk)) return false;
  const int low = chunk.low(item.first), high = chunk.high(item.first + item.rows - 1);
  const float* keys = call.turned_key ? call.turned_key : call.key;
  const int64_t key_stride = call.turned_key ? int64_t(call.kv_heads) * call.head_dim : call.key_stride;
  const float* values = call.value + int64_t(item.kv_head) * call.value_dim;
  keys += int64_t(item.kv_head) * call.head_dim;

  int64_t rows[kKeyTile];
  for (int tile = low / kKeyTile * kKeyTile; tile < high; tile += kKeyTile) {
    const int count = chunk.length - tile < kKeyTile ? chunk.length - tile : kKeyTile;
    for (int j = 0; j < kKeyTile; ++j) rows[j] = chunk.start + tile + (j < count ? j : count - 1);
    transpose_keys<S>(keys, key_stride, rows, count, call.head_dim, chunk.keys);
    widen_values<S>(values, call.value_stride, rows, count, call.value_dim, chunk.value_stride, chunk.values);
    for (int block = 0; block < chunk.rows; block += kRowBlock)
      attend_packed_block<S>(call, chunk, block, tile);
  }
  for (int r = 0; r < chunk.rows; ++r) {
    const int64_t token = chunk.start + chunk.position(r);
    const int head = chunk.first_head + r % chunk.group;
    finish_row<S>(chunk.output + int64_t(r) * chunk.value_stride, chunk.sums + r * W, call.value_dim,
                  call.output + (token * call.num_heads + head) * call.value_dim);
  }
  return true;
}

}  // namespace slipway::cpu
