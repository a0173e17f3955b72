// Attention of one token: a sequence with a single new token.
//
// Bound by reading the cache, so all query heads of a key head are served by one pass over it, one item takes
// several key heads, whose rows lie side by side, and rows are fetched ahead of their use.
#pragma once

#include <type_traits>

#include "softmax.h"

namespace slipway::cpu {

float* thread_scratch(int64_t floats);

constexpr int kStrip = 16;  // keys of one head that are worked on at a time
constexpr int kAhead = 16;  // keys between fetching a row and using it

// Rows of the cache in the order in which one tile uses them, at the item's first key head: the tile's keys,
// its values, then the first keys of the next tile, which are only fetched. Byte pointers.
struct RowStream {
  const char* rows[2 * kKeyTile + kAhead];
};

// Asks for the cache lines of a row. Reading nothing, it may point anywhere.
static inline __attribute__((always_inline)) void fetch(const char* row, int bytes) {
  for (int line = 0; line < bytes; line += 64) __builtin_prefetch(row + line);
}

// Scores of kWidth keys for kHeads query heads. `rows` are the keys, `offset` the bytes from a row's start to
// the key head. Keys are turned into columns, so that every score is one sum over the dimensions in order:
// the very instructions of the prefill kernel (score_block), hence the same bits.
template <class S, class T, int kHeads>
inline void score_keys(const float* query, int query_stride, const char* const* rows, int64_t offset,
                       int64_t ahead_offset, int head_dim, float* scores) {
  using V = typename S::V;
  constexpr int W = S::kWidth;
  V keys[W], sums[kHeads];
  for (int h = 0; h < kHeads; ++h) sums[h] = S::zero();
  // `keys` holds dimensions [d, d + dims) of kWidth keys.
  auto add_products = [&](int d, int dims) {
    S::transpose(keys);
    for (int i = 0; i < dims; ++i) {
      for (int h = 0; h < kHeads; ++h) {
        sums[h] = S::fma(S::set1(query[h * query_stride + d + i]), keys[i], sums[h]);
      }
    }
  };
  int d = 0;
  for (; d + W <= head_dim; d += W) {
    const int64_t byte = d * int64_t(sizeof(T));
    for (int j = 0; j < W; ++j) {
      keys[j] = S::load(reinterpret_cast<const T*>(rows[j] + offset + byte));
      if (byte % 64 == 0) fetch(rows[j + kAhead] + ahead_offset + byte, 64);
    }
    add_products(d, W);
  }
  if (d < head_dim) {
    for (int j = 0; j < W; ++j) {
      keys[j] = load_part<S>(reinterpret_cast<const T*>(rows[j] + offset) + d, head_dim - d);
    }
    add_products(d, head_dim - d);
  }
  for (int h = 0; h < kHeads; ++h) S::store(scores + h * kKeyTile, sums[h]);
}

// output[head][column ...] += weights[head][j] * value[j][column ...] for `count` keys and kVectors vectors
// of columns, of which `columns` exist.
template <class S, class T, int kHeads, int kVectors>
inline void add_value_columns(const float* weights, const char* const* rows, int64_t offset, int count,
                              int columns, float* output, int output_stride) {
  using V = typename S::V;
  constexpr int W = S::kWidth;
  V sums[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) sums[h][v] = S::load(output + h * output_stride + v * W);
  }
  const bool whole = columns >= kVectors * W;
  for (int j = 0; j < count; ++j) {
    const T* value = reinterpret_cast<const T*>(rows[j] + offset);
    fetch(rows[j + kAhead] + offset, kVectors * W * int(sizeof(T)));
    V row[kVectors];
    if (whole) {
      for (int v = 0; v < kVectors; ++v) row[v] = S::load(value + v * W);
    } else {
      for (int v = 0; v < kVectors; ++v) row[v] = load_part<S>(value + v * W, columns - v * W);
    }
    for (int h = 0; h < kHeads; ++h) {
      const V weight = S::set1(weights[h * kKeyTile + j]);
      for (int v = 0; v < kVectors; ++v) sums[h][v] = S::fma(weight, row[v], sums[h][v]);
    }
  }
  for (int h = 0; h < kHeads; ++h) {
    for (int v = 0; v < kVectors; ++v) S::store(output + h * output_stride + v * W, sums[h][v]);
  }
}

template <class S, class T, int kHeads>
inline void add_values(const float* weights, const char* const* rows, int64_t offset, int count,
                       int value_dim, float* output, int output_stride) {
  constexpr int kBlock = S::kValueVectors * S::kWidth;
  int column = 0;
  for (; column + kBlock <= value_dim; column += kBlock) {
    add_value_columns<S, T, kHeads, S::kValueVectors>(weights, rows, offset + column * int64_t(sizeof(T)),
                                                      count, kBlock, output + column, output_stride);
  }
  for (; column < value_dim; column += S::kWidth) {
    add_value_columns<S, T, kHeads, 1>(weights, rows, offset + column * int64_t(sizeof(T)), count,
                                       value_dim - column, output + column, output_stride);
  }
}

// Query heads of one key head, at most four at a time: f(first head, compile-time count).
template <class F>
static inline void for_head_blocks(int group, F&& f) {
  int head = 0;
  for (; group - head >= 4; head += 4) f(head, std::integral_constant<int, 4>());
  if (group - head == 3) f(head, std::integral_constant<int, 3>());
  if (group - head == 2) f(head, std::integral_constant<int, 2>());
  if (group - head == 1) f(head, std::integral_constant<int, 1>());
}

// The part of a sequence that its one token sees, tile by tile.
struct DecodeRange {
  int low;     // first visible position
  int length;  // positions; the last is the token's own

  int first_tile() const { return low / kKeyTile * kKeyTile; }
  int begin(int tile) const { return low > tile ? low - tile : 0; }
  int end(int tile) const { return length - tile < kKeyTile ? length - tile : kKeyTile; }
  // Visible keys widened to whole strips.
  int first_strip(int tile) const { return begin(tile) / kStrip * kStrip; }
  int strips_end(int tile) const { return (end(tile) + kStrip - 1) / kStrip * kStrip; }
};

template <class S, class T>
inline void find_rows(const PagedAttention& call, const WorkItem& item, const DecodeRange& range, int tile,
                      RowStream* stream) {
  const int64_t key_bytes = int64_t(call.kv_heads) * call.head_dim * sizeof(T);
  const int64_t value_bytes = int64_t(call.kv_heads) * call.value_dim * sizeof(T);
  const char* keys =
      static_cast<const char*>(call.key_cache) + item.first_kv_head * call.head_dim * sizeof(T);
  const char* values =
      static_cast<const char*>(call.value_cache) + item.first_kv_head * call.value_dim * sizeof(T);
  const int first = range.first_strip(tile), count = range.strips_end(tile) - first;
  int64_t slots[kKeyTile + kAhead];
  find_slots(call, item.sequence, tile + first, count + kAhead, range.low, range.length, slots);
  for (int i = 0; i < count; ++i) {
    stream->rows[i] = keys + slots[i] * key_bytes;
    stream->rows[count + i] = values + slots[i] * value_bytes;
  }
  for (int i = 0; i < kAhead; ++i) stream->rows[2 * count + i] = keys + slots[count + i] * key_bytes;
}

template <class S, class T>
bool attend_token(const PagedAttention& call, const WorkItem& item) {
  constexpr int W = S::kWidth;
  static_assert(kStrip % W == 0, "a strip holds whole vectors");
  const int group = call.group(), heads = item.kv_heads * group, first_head = item.first_kv_head * group;
  const int head_dim = call.head_dim, value_dim = call.value_dim, query_stride = call.padded_head_dim();
  const int64_t head_bytes = head_dim * int64_t(sizeof(T)), value_bytes = value_dim * int64_t(sizeof(T));
  const int output_stride = (value_dim + W - 1) / W * W;
  DecodeRange range;
  range.length = call.past_lengths[item.sequence] + 1;
  range.low = call.window > 0 && range.length > call.window ? range.length - call.window : 0;
  const float* query =
      call.turned_query + (int64_t(item.first_token) * call.num_heads + first_head) * query_stride;

  float* scratch = thread_scratch(int64_t(heads) * (kKeyTile + output_stride + W + 1));
  if (!scratch) return false;
  float* scores = scratch;                                // [heads][kKeyTile]
  float* output = scores + heads * kKeyTile;              // [heads][output_stride]
  float* sums = output + int64_t(heads) * output_stride;  // [heads][W]
  float* maxima = sums + heads * W;                       // [heads]
  for (int64_t i = 0; i < int64_t(heads) * output_stride; ++i) output[i] = 0;
  for (int h = 0; h < heads; ++h) start_row<S>(call, first_head + h, maxima + h, sums + h * W);

  RowStream stream;
  for (int tile = range.first_tile(); tile < range.length; tile += kKeyTile) {
    const int begin = range.begin(tile), end = range.end(tile);
    const int first = range.first_strip(tile), count = range.strips_end(tile) - first;
    find_rows<S, T>(call, item, range, tile, &stream);
    for (int strip = 0; strip < count; strip += kStrip) {
      for (int kv = 0; kv < item.kv_heads; ++kv) {
        const int64_t ahead_offset = kv * (strip + kAhead < count ? head_bytes : value_bytes);
        for (int key = strip; key < strip + kStrip; key += W) {
          for_head_blocks(group, [&](int g, auto block) {
            const int head = kv * group + g;
            score_keys<S, T, block()>(query + int64_t(head) * query_stride, query_stride, stream.rows + key,
                                      kv * head_bytes, ahead_offset, head_dim,
                                      scores + head * kKeyTile + first + key);
          });
        }
      }
    }
    for (int h = 0; h < heads; ++h) {
      const float factor = absorb_scores<S>(score_rule(call, first_head + h), scores + h * kKeyTile, begin,
                                            end, tile - (range.length - 1), maxima + h, sums + h * W);
      if (factor != 1.0f) scale_row<S>(output + int64_t(h) * output_stride, output_stride, factor);
    }
    // Keys that are masked have weight zero, but their value is another key's: leave them out.
    for (int strip = begin; strip < end; strip = (strip / kStrip + 1) * kStrip) {
      const int strip_end = (strip / kStrip + 1) * kStrip < end ? (strip / kStrip + 1) * kStrip : end;
      for (int kv = 0; kv < item.kv_heads; ++kv) {
        for_head_blocks(group, [&](int g, auto block) {
          const int head = kv * group + g;
          add_values<S, T, block()>(scores + head * kKeyTile + strip, stream.rows + count + strip - first,
                                    kv * value_bytes, strip_end - strip, value_dim,
                                    output + int64_t(head) * output_stride, output_stride);
        });
      }
    }
  }
  for (int h = 0; h < heads; ++h) {
    finish_row<S>(output + int64_t(h) * output_stride, sums + h * W, value_dim,
                  call.output + (int64_t(item.first_token) * call.num_heads + first_head + h) * value_dim,
                  value_scale(call, item.first_kv_head + h / group));
  }
  return true;
}

}  // namespace slipway::cpu
