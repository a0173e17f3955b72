// Attention of several new tokens of one sequence: tiles of queries against tiles of keys (FlashAttention's
// order of work, Dao et al. 2022, https://arxiv.org/abs/2205.14135).
//
// A key tile is transposed and a value tile widened to float once; all rows of the item (tokens x query heads
// of one key head) then use them from the first-level cache. A row's result does not depend on which rows
// share its item: every row runs through the same key tiles and the same instructions.
#pragma once

#include "decode.h"

namespace slipway::cpu {

constexpr int kPrefillTile = 64;  // keys of a tile

// keys [head_dim][kPrefillTile] <- rows of the cache.
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
      for (int i = 0; i < dims; ++i) S::store(keys + (d + i) * kPrefillTile + first, block[i]);
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
    for (int v = 0; v < kVectors; ++v) k[v] = S::load(keys + d * kPrefillTile + v * W);
    for (int r = 0; r < kRows; ++r) {
      const V q = S::set1(query[r * query_stride + d]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = S::fma(q, k[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) S::store(scores + r * kPrefillTile + v * W, sums[r][v]);
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
      const V weight = S::set1(weights[r * kPrefillTile + j]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = S::fma(weight, row[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) S::store(output + r * output_stride + v * W, sums[r][v]);
  }
}

template <class S, class T>
bool attend_chunk(const PagedAttention& call, const WorkItem& item) {
  constexpr int W = S::kWidth, kRowBlock = S::kScoreRows;
  static_assert(kRowBlock % S::kValueRows == 0 && kPrefillTile % (W * S::kScoreVectors) == 0,
                "blocks must fit");
  const int group = call.group(), first_head = item.first_kv_head * group;
  const int head_dim = call.head_dim, value_dim = call.value_dim, query_stride = call.padded_head_dim();
  const int value_stride = (value_dim + W - 1) / W * W;
  const int rows = item.rows * group, padded_rows = (rows + kRowBlock - 1) / kRowBlock * kRowBlock;
  // Positions of the item's first and last token; the last sees keys up to its own.
  const int first_position =
      call.past_lengths[item.sequence] + item.first_token - call.cumulative_lengths[item.sequence];
  const int length = first_position + item.rows;
  const int low = call.window > 0 && first_position + 1 > call.window ? first_position + 1 - call.window : 0;
  const int64_t key_cache_stride = int64_t(call.kv_heads) * head_dim;
  const int64_t value_cache_stride = int64_t(call.kv_heads) * value_dim;
  const T* key_cache = static_cast<const T*>(call.key_cache) + int64_t(item.first_kv_head) * head_dim;
  const T* value_cache = static_cast<const T*>(call.value_cache) + int64_t(item.first_kv_head) * value_dim;

  float* scratch =
      thread_scratch(int64_t(padded_rows) * (query_stride + kPrefillTile + value_stride + W + 1) +
                     int64_t(kPrefillTile) * (head_dim + value_stride));
  if (!scratch) return false;
  float* keys = scratch;                                        // [head_dim][kPrefillTile]
  float* values = keys + head_dim * kPrefillTile;               // [kPrefillTile][value_stride]
  float* query = values + kPrefillTile * value_stride;          // [padded_rows][query_stride]
  float* scores = query + int64_t(padded_rows) * query_stride;  // [padded_rows][kPrefillTile]
  float* output = scores + padded_rows * kPrefillTile;          // [padded_rows][value_stride]
  float* sums = output + int64_t(padded_rows) * value_stride;   // [padded_rows][W]
  float* maxima = sums + padded_rows * W;                       // [padded_rows]

  for (int r = 0; r < padded_rows; ++r) {
    const int64_t token = item.first_token + r / group;
    const float* from = call.turned_query + (token * call.num_heads + first_head + r % group) * query_stride;
    for (int d = 0; d < query_stride; ++d) query[r * query_stride + d] = r < rows ? from[d] : 0.0f;
    if (r < rows) start_row<S>(call, first_head + r % group, maxima + r, sums + r * W);
  }
  for (int64_t i = 0; i < int64_t(padded_rows) * value_stride; ++i) output[i] = 0;

  int64_t slots[kPrefillTile];
  for (int tile = low / kPrefillTile * kPrefillTile; tile < length; tile += kPrefillTile) {
    const int count = length - tile < kPrefillTile ? length - tile : kPrefillTile;
    find_slots(call, item.sequence, tile, kPrefillTile, low, length, slots);
    transpose_keys<S>(key_cache, key_cache_stride, slots, count, head_dim, keys);
    for (int j = 0; j < count; ++j) {
      for (int d = 0; d < value_dim; d += W) {
        S::store(values + j * value_stride + d,
                 load_part<S>(value_cache + slots[j] * value_cache_stride + d, value_dim - d));
      }
    }
    // Blocks of rows that lie wholly before this tile see none of it.
    const int blind_rows = tile > first_position ? (tile - first_position) * group : 0;
    for (int block = blind_rows / kRowBlock * kRowBlock; block < rows; block += kRowBlock) {
      float* block_scores = scores + block * kPrefillTile;
      for (int key = 0; key < count; key += W * S::kScoreVectors) {
        score_block<S>(query + int64_t(block) * query_stride, query_stride, keys + key, head_dim,
                       block_scores + key);
      }
      for (int r = block; r < block + kRowBlock && r < rows; ++r) {
        const int position = first_position + r / group;
        const int begin = call.window > 0 ? position + 1 - call.window - tile : 0;
        const int end = position + 1 - tile;
        const float factor = absorb_scores<S, kPrefillTile>(
            score_rule(call, first_head + r % group), scores + r * kPrefillTile, begin > 0 ? begin : 0,
            end < kPrefillTile ? end : kPrefillTile, tile - position, maxima + r, sums + r * W);
        if (factor != 1.0f) scale_row<S>(output + int64_t(r) * value_stride, value_stride, factor);
      }
      for (int r = block; r < block + kRowBlock; r += S::kValueRows) {
        const float* weights = scores + r * kPrefillTile;
        float* sum = output + int64_t(r) * value_stride;
        int d = 0;
        for (; d + W * S::kValueVectors <= value_stride; d += W * S::kValueVectors) {
          value_block<S, S::kValueVectors>(weights, values + d, value_stride, count, sum + d, value_stride);
        }
        for (; d < value_stride; d += W) {
          value_block<S, 1>(weights, values + d, value_stride, count, sum + d, value_stride);
        }
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    const int64_t token = item.first_token + r / group;
    finish_row<S>(output + int64_t(r) * value_stride, sums + r * W, value_dim,
                  call.output + (token * call.num_heads + first_head + r % group) * value_dim);
  }
  return true;
}

}  // namespace slipway::cpu
