// Attention of one token: a sequence with a single new token.
//
// Bound by reading the cache, so all query heads of a key head are served by one pass over it, and one item
// takes several key heads, whose rows lie side by side.
#pragma once

#include <type_traits>

#include "softmax.h"

namespace slipway::cpu {

float* thread_scratch(int64_t floats);

constexpr int kDecodeTile = 64;  // keys between two updates of the softmax state

// Scores of kWidth keys for kHeads query heads. `keys` is the cache at the key head, `stride` its elements
// from one slot to the next. kDim is head_dim where it is known at compile time, otherwise 0.
template <class S, class T, int kHeads, int kDim>
inline void score_keys(const float* query, int query_stride, const T* keys, int64_t stride,
                       const int64_t* slots, int head_dim, float* scores) {
  using V = typename S::V;
  constexpr int W = S::kWidth;
  V products[kHeads][W];
  for (int j = 0; j < W; ++j) {
    const T* key = keys + slots[j] * stride;
    V sums[kHeads];
    for (int h = 0; h < kHeads; ++h) sums[h] = S::zero();
    if constexpr (kDim > 0) {
      for (int d = 0; d < kDim; d += W) {
        const V k = S::load(key + d);
        for (int h = 0; h < kHeads; ++h) sums[h] = S::fma(S::load(query + h * query_stride + d), k, sums[h]);
      }
    } else {
      for (int d = 0; d < head_dim; d += W) {
        const V k = load_part<S>(key + d, head_dim - d);
        for (int h = 0; h < kHeads; ++h) sums[h] = S::fma(S::load(query + h * query_stride + d), k, sums[h]);
      }
    }
    for (int h = 0; h < kHeads; ++h) products[h][j] = sums[h];
  }
  for (int h = 0; h < kHeads; ++h) S::store(scores + h * kDecodeTile, S::sum_each(products[h]));
}

// output[head][column ...] += weights[head][j] * value[j][column ...] for keys [begin, end) and kVectors
// vectors of columns.
template <class S, class T, int kHeads, int kVectors>
inline void add_value_columns(const float* weights, const T* values, int64_t stride, const int64_t* slots,
                              int begin, int end, int columns, float* output, int output_stride) {
  using V = typename S::V;
  constexpr int W = S::kWidth;
  V sums[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) sums[h][v] = S::load(output + h * output_stride + v * W);
  }
  if (columns >= kVectors * W) {
    for (int j = begin; j < end; ++j) {
      const T* value = values + slots[j] * stride;
      V row[kVectors];
      for (int v = 0; v < kVectors; ++v) row[v] = S::load(value + v * W);
      for (int h = 0; h < kHeads; ++h) {
        const V weight = S::set1(weights[h * kDecodeTile + j]);
        for (int v = 0; v < kVectors; ++v) sums[h][v] = S::fma(weight, row[v], sums[h][v]);
      }
    }
  } else {
    for (int j = begin; j < end; ++j) {
      const V row = load_part<S>(values + slots[j] * stride, columns);
      for (int h = 0; h < kHeads; ++h) {
        sums[h][0] = S::fma(S::set1(weights[h * kDecodeTile + j]), row, sums[h][0]);
      }
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) S::store(output + h * output_stride + v * W, sums[h][v]);
  }
}

template <class S, class T, int kHeads>
inline void add_values(const float* weights, const T* values, int64_t stride, const int64_t* slots, int begin,
                       int end, int value_dim, float* output, int output_stride) {
  constexpr int kBlock = S::kValueVectors * S::kWidth;
  int column = 0;
  for (; column + kBlock <= value_dim; column += kBlock) {
    add_value_columns<S, T, kHeads, S::kValueVectors>(weights, values + column, stride, slots, begin, end,
                                                      kBlock, output + column, output_stride);
  }
  for (; column < value_dim; column += S::kWidth) {
    add_value_columns<S, T, kHeads, 1>(weights, values + column, stride, slots, begin, end,
                                       value_dim - column, output + column, output_stride);
  }
}

template <class S, class T, int kHeads>
inline void score_heads(const float* query, int query_stride, const T* keys, int64_t stride,
                        const int64_t* slots, int head_dim, float* scores) {
  if (S::kWidth >= 8 && head_dim == 64) {
    score_keys<S, T, kHeads, 64>(query, query_stride, keys, stride, slots, head_dim, scores);
  } else if (S::kWidth >= 8 && head_dim == 128) {
    score_keys<S, T, kHeads, 128>(query, query_stride, keys, stride, slots, head_dim, scores);
  } else {
    score_keys<S, T, kHeads, 0>(query, query_stride, keys, stride, slots, head_dim, scores);
  }
}

// Query heads of one key head, at most four at a time: f(first head, compile-time count).
template <class F>
static inline void for_head_blocks(int group, F&& f) {
  int head = 0;
  for (; head + 4 <= group; head += 4) f(head, std::integral_constant<int, 4>());
  if (group - head == 3) f(head, std::integral_constant<int, 3>());
  if (group - head == 2) f(head, std::integral_constant<int, 2>());
  if (group - head == 1) f(head, std::integral_constant<int, 1>());
}

template <class S, class T>
bool attend_token(const PagedAttention& call, const WorkItem& item) {
  constexpr int W = S::kWidth;
  const int group = call.group(), heads = item.kv_heads * group, first_head = item.first_kv_head * group;
  const int head_dim = call.head_dim, value_dim = call.value_dim, query_stride = call.padded_head_dim();
  const int output_stride = (value_dim + 15) / 16 * 16;
  const int length = call.past_lengths[item.sequence] + 1;
  const int low = call.window > 0 && length > call.window ? length - call.window : 0;
  const int64_t key_stride = int64_t(call.kv_heads) * head_dim,
                value_stride = int64_t(call.kv_heads) * value_dim;
  const float* query =
      call.turned_query + (int64_t(item.first_token) * call.num_heads + first_head) * query_stride;
  const T* keys = static_cast<const T*>(call.key_cache) + int64_t(item.first_kv_head) * head_dim;
  const T* values = static_cast<const T*>(call.value_cache) + int64_t(item.first_kv_head) * value_dim;

  float* scratch = thread_scratch(int64_t(heads) * (kDecodeTile + output_stride + W + 1));
  if (!scratch) return false;
  float* scores = scratch;                                // [heads][kDecodeTile]
  float* output = scores + heads * kDecodeTile;           // [heads][output_stride]
  float* sums = output + int64_t(heads) * output_stride;  // [heads][W]
  float* maxima = sums + heads * W;                       // [heads]
  for (int64_t i = 0; i < int64_t(heads) * output_stride; ++i) output[i] = 0;
  for (int h = 0; h < heads; ++h) start_row<S>(call, first_head + h, maxima + h, sums + h * W);

  int64_t slots[kDecodeTile];
  for (int tile = low / kDecodeTile * kDecodeTile; tile < length; tile += kDecodeTile) {
    const int begin = low > tile ? low - tile : 0;
    const int end = length - tile < kDecodeTile ? length - tile : kDecodeTile;
    find_slots<kDecodeTile>(call, item.sequence, tile, low, length, slots);
    for (int strip = begin / W * W; strip < end; strip += W) {
      for (int kv = 0; kv < item.kv_heads; ++kv) {
        for_head_blocks(group, [&](int g, auto count) {
          const int head = kv * group + g;
          score_heads<S, T, count()>(query + int64_t(head) * query_stride, query_stride, keys + kv * head_dim,
                                     key_stride, slots + strip, head_dim,
                                     scores + head * kDecodeTile + strip);
        });
      }
    }
    for (int h = 0; h < heads; ++h) {
      const float factor =
          absorb_scores<S, kDecodeTile>(score_rule(call, first_head + h), scores + h * kDecodeTile, begin,
                                        end, tile - (length - 1), maxima + h, sums + h * W);
      if (factor != 1.0f) scale_row<S>(output + int64_t(h) * output_stride, output_stride, factor);
    }
    for (int strip = begin; strip < end; strip += 16) {
      const int strip_end = strip + 16 < end ? strip + 16 : end;
      for (int kv = 0; kv < item.kv_heads; ++kv) {
        for_head_blocks(group, [&](int g, auto count) {
          const int head = kv * group + g;
          add_values<S, T, count()>(scores + head * kDecodeTile, values + kv * value_dim, value_stride, slots,
                                    strip, strip_end, value_dim, output + int64_t(head) * output_stride,
                                    output_stride);
        });
      }
    }
  }
  for (int h = 0; h < heads; ++h) {
    finish_row<S>(output + int64_t(h) * output_stride, sums + h * W, value_dim,
                  call.output + (int64_t(item.first_token) * call.num_heads + first_head + h) * value_dim);
  }
  return true;
}

}  // namespace slipway::cpu
