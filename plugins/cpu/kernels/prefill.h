// Attention of several new tokens of one sequence: tiles of queries against tiles of keys (FlashAttention's
// order of work, Dao et al. 2022, https://arxiv.org/abs/2205.14135).
//
// A key tile is transposed and a value tile widened to float once; all rows of the item (tokens x query heads
// of one key head) then use them from the first-level cache. A row's result does not depend on which rows
// share its item: every row runs through the same key tiles and the same instructions.
#pragma once

#include "decode.h"

namespace slipway::cpu {

// keys [head_dim][kKeyTile] <- rows of the cache.
template <class S, class T>
inline void transpose_keys(const T* cache, int64_t stride, const int64_t* slots, int count, int head_dim,
                           float* keys) {
  using V = typename S::V;
  constexpr int W = S::kWidth;
  for (int first = 0; first < count; first += W) {
    for (int d = 0; d < head_dim; d += W) {
      V block[W];
      for (int j = 0; j < W; ++j)
        block[j] = load_part<S>(cache + slots[first + j] * stride + d, head_dim - d);
      S::transpose(block);
      const int dims = head_dim - d < W ? head_dim - d : W;
      for (int i = 0; i < dims; ++i) S::store(keys + (d + i) * kKeyTile + first, block[i]);
    }
  }
}

// scores[r][...] = sum over d of query[r][d] * keys[d][...]: kScoreRows rows, kScoreVectors vectors of keys.
template <class S>
inline void score_block(const float* query, int query_stride, const float* keys, int head_dim,
                        float* scores) {
  using V = typename S::V;
  constexpr int W = S::kWidth, kRows = S::kScoreRows, kVectors = S::kScoreVectors;
  V sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v] = S::zero();
  }
  for (int d = 0; d < head_dim; ++d) {
    V k[kVectors];
    for (int v = 0; v < kVectors; ++v) k[v] = S::load(keys + d * kKeyTile + v * W);
    for (int r = 0; r < kRows; ++r) {
      const V q = S::set1(query[r * query_stride + d]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = S::fma(q, k[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) S::store(scores + r * kKeyTile + v * W, sums[r][v]);
  }
}

// output[r][...] += sum over j < count of weights[r][j] * values[j][...]: kValueRows rows, kVectors vectors.
template <class S, int kVectors>
inline void value_block(const float* weights, const float* values, int values_stride, int count,
                        float* output, int output_stride) {
  using V = typename S::V;
  constexpr int W = S::kWidth, kRows = S::kValueRows;
  V sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) sums[r][v] = S::load(output + r * output_stride + v * W);
  }
  for (int j = 0; j < count; ++j) {
    V row[kVectors];
    for (int v = 0; v < kVectors; ++v) row[v] = S::load(values + j * values_stride + v * W);
    for (int r = 0; r < kRows; ++r) {
      const V weight = S::set1(weights[r * kKeyTile + j]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = S::fma(weight, row[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) S::store(output + r * output_stride + v * W, sums[r][v]);
  }
}

// values [kKeyTile][value_stride] <- rows of the cache, as float, padded with zeros.
template <class S, class T>
inline void widen_values(const T* cache, int64_t stride, const int64_t* slots, int count, int value_dim,
                         int value_stride, float* values) {
  for (int j = 0; j < count; ++j) {
    for (int d = 0; d < value_dim; d += S::kWidth) {
      S::store(values + j * value_stride + d, load_part<S>(cache + slots[j] * stride + d, value_dim - d));
    }
  }
}

// An item's sizes and the scratch it works in. Row r is query head r % group of token r / group.
struct Chunk {
  int group, rows, padded_rows, head_dim, value_dim, query_stride, value_stride;
  int first_head;      // query head of row 0
  int first_position;  // of the item's first token
  int window;
  float* keys;    // [head_dim][kKeyTile]
  float* values;  // [kKeyTile][value_stride]
  float* query;   // [padded_rows][query_stride]
  float* scores;  // [padded_rows][kKeyTile]
  float* output;  // [padded_rows][value_stride]
  float* sums;    // [padded_rows][W]
  float* maxima;  // [padded_rows]

  int position(int row) const { return first_position + row / group; }
  // Keys of the tile that a row sees: [begin, end).
  int begin(int row, int tile) const {
    const int first = window > 0 ? position(row) + 1 - window - tile : 0;
    return first > 0 ? first : 0;
  }
  int end(int row, int tile) const {
    const int last = position(row) + 1 - tile;
    return last < kKeyTile ? last : kKeyTile;
  }
};

// One block of rows against one tile of keys.
template <class S>
inline void attend_block(const PagedAttention& call, const Chunk& chunk, int block, int tile) {
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
    const float factor =
        absorb_scores<S>(score_rule(call, chunk.first_head + r % chunk.group), chunk.scores + r * kKeyTile,
                         chunk.begin(r, tile), chunk.end(r, tile), tile - chunk.position(r), chunk.maxima + r,
                         chunk.sums + r * W);
    if (factor != 1.0f) {
      scale_row<S>(chunk.output + int64_t(r) * chunk.value_stride, chunk.value_stride, factor);
    }
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
    for (; d < chunk.value_stride; d += W) {
      value_block<S, 1>(weights, values + d, chunk.value_stride, end - begin, output + d, chunk.value_stride);
    }
  }
}

// Sizes and scratch of an item; false when there is no memory.
template <class S>
inline bool start_chunk(const PagedAttention& call, const WorkItem& item, Chunk* chunk) {
  constexpr int W = S::kWidth, kRowBlock = S::kScoreRows;
  chunk->group = call.group();
  chunk->rows = item.rows * chunk->group;
  chunk->padded_rows = (chunk->rows + kRowBlock - 1) / kRowBlock * kRowBlock;
  chunk->head_dim = call.head_dim;
  chunk->value_dim = call.value_dim;
  chunk->query_stride = call.padded_head_dim();
  chunk->value_stride = (call.value_dim + W - 1) / W * W;
  chunk->first_head = item.first_kv_head * chunk->group;
  chunk->first_position =
      call.past_lengths[item.sequence] + item.first_token - call.cumulative_lengths[item.sequence];
  chunk->window = call.window;

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

  for (int r = 0; r < chunk->padded_rows; ++r) {
    const int head = chunk->first_head + r % chunk->group;
    const int64_t token = item.first_token + r / chunk->group;
    const float* from = call.turned_query + (token * call.num_heads + head) * chunk->query_stride;
    float* to = chunk->query + int64_t(r) * chunk->query_stride;
    for (int d = 0; d < chunk->query_stride; ++d) to[d] = r < chunk->rows ? from[d] : 0.0f;
    if (r < chunk->rows) start_row<S>(call, head, chunk->maxima + r, chunk->sums + r * W);
  }
  for (int64_t i = 0; i < rows * chunk->value_stride; ++i) chunk->output[i] = 0;
  // Rows of padding in a block get weights too; they are multiplied, and thrown away.
  for (int64_t i = 0; i < rows * kKeyTile; ++i) chunk->scores[i] = 0;
  return true;
}

template <class S, class T>
bool attend_chunk(const PagedAttention& call, const WorkItem& item) {
  constexpr int W = S::kWidth, kRowBlock = S::kScoreRows;
  static_assert(kRowBlock % S::kValueRows == 0 && kKeyTile % (W * S::kScoreVectors) == 0, "blocks must fit");
  Chunk chunk;
  if (!start_chunk<S>(call, item, &chunk)) return false;
  const int length = chunk.first_position + item.rows;  // the last token sees keys up to its own
  const int first_seen = chunk.first_position + 1 - call.window;
  const int low = call.window > 0 && first_seen > 0 ? first_seen : 0;
  const int64_t key_stride = int64_t(call.kv_heads) * call.head_dim;
  const int64_t value_stride = int64_t(call.kv_heads) * call.value_dim;
  const T* key_cache = static_cast<const T*>(call.key_cache) + int64_t(item.first_kv_head) * call.head_dim;
  const T* value_cache =
      static_cast<const T*>(call.value_cache) + int64_t(item.first_kv_head) * call.value_dim;

  int64_t slots[kKeyTile];
  for (int tile = low / kKeyTile * kKeyTile; tile < length; tile += kKeyTile) {
    const int count = length - tile < kKeyTile ? length - tile : kKeyTile;
    find_slots(call, item.sequence, tile, kKeyTile, low, length, slots);
    transpose_keys<S>(key_cache, key_stride, slots, count, call.head_dim, chunk.keys);
    widen_values<S>(value_cache, value_stride, slots, count, call.value_dim, chunk.value_stride,
                    chunk.values);
    for (int block = 0; block < chunk.rows; block += kRowBlock) attend_block<S>(call, chunk, block, tile);
  }
  for (int r = 0; r < chunk.rows; ++r) {
    const int64_t token = item.first_token + r / chunk.group;
    const int head = chunk.first_head + r % chunk.group;
    finish_row<S>(chunk.output + int64_t(r) * chunk.value_stride, chunk.sums + r * W, call.value_dim,
                  call.output + (token * call.num_heads + head) * call.value_dim, value_scale(call, item.first_kv_head));
  }
  return true;
}

}  // namespace slipway::cpu
