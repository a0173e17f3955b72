// Writes the step's new keys and values into the pools, with normalization, rotary embedding and quantization on the
// way, and turns the queries in the same launch when they are given.
#pragma once
#include <cstdint>

#include "slipway/rotary.cuh"

namespace slipway {

// T is the type of the new rows (float16, bfloat16, float32), C that of the pools (these, int8, float8 e4m3).
// Strides are in elements; the last axis of every array is contiguous. Arrays that are optional are null when absent.
struct KvWriteParams {
  const void* key = nullptr;    // [tokens, kv_heads, key_dim] T
  const void* value = nullptr;  // [tokens, kv_heads, value_dim] T
  int64_t key_token_stride = 0, key_head_stride = 0;
  int64_t value_token_stride = 0, value_head_stride = 0;

  void* key_cache = nullptr;    // [num_blocks, block_size, kv_heads, key_dim] C, contiguous
  void* value_cache = nullptr;  // [num_blocks, block_size, kv_heads, value_dim] C, contiguous
  const int32_t* slot_mapping = nullptr;  // [tokens] block * block_size + offset, less than num_slots; negative: the
                                          // token's key and value are written nowhere (its query is still turned)
  int64_t num_slots = 0;                  // num_blocks * block_size

  // Rows from *live_tokens on are padding: nothing of them is used or written. Optional: all rows are live. This is
  // &cu_seqlens[batch] of the decoder contract.
  const int32_t* live_tokens = nullptr;

  // Quantized pools hold round(x / scale): either the scales are given, one a head ([kv_heads], or one for all heads:
  // stride 0), or each row's own are computed, max |x| / (127 or 448), and written.
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

// How a launch deals a head's elements to threads. A group of `lanes` threads has a head; each of them holds two runs
// of 8 elements, chosen so that both elements of a rotary pair are in one thread.
struct KvWritePlan {
  int lanes_log2 = 0;  // of a group, 0 to 5
  // Widest accesses (bytes: 16, 8, 4, or less: single elements) that all runs of an array allow.
  int key_access = 0, value_access = 0, query_access = 0, table_access = 0;
  int key_cache_access = 0, value_cache_access = 0, query_out_access = 0, weight_access = 0;
};
constexpr int kRun = 8;
// A row whose largest |x| / (127 or 448) is less has scale 0 and elements 0: the least normal float.
constexpr float kLeastScale = 1.17549435e-38f;
constexpr int kKvWriteThreads = 128;

namespace kv_write {

// The elements of a head that one lane holds: [first, first + first_count) and [second, second + second_count), and
// the rotary pairs [pair, pair + pairs) that these make up.
struct Share {
  int first, first_count, second, second_count;
  int pair, pairs;
};

__host__ __device__ __forceinline__ int clipped(int count) { return count < 0 ? 0 : count < kRun ? count : kRun; }

// Lanes that a head of `size` elements needs.
__host__ __device__ __forceinline__ int lanes_of(int size, int rotary_dim, bool interleaved) {
  const int apart = interleaved ? 0 : rotary_dim;  // elements whose pairs are not neighbours
  return (apart / 2 + kRun - 1) / kRun + (size - apart + 2 * kRun - 1) / (2 * kRun);
}

// Lanes beyond the last one that is needed hold nothing. rotary_dim 0: no pairs.
__device__ __forceinline__ Share share_of(int lane, int size, int rotary_dim, bool interleaved) {
  const int half = rotary_dim / 2;
  Share s;
  s.pair = lane * kRun;
  s.pairs = clipped(half - s.pair);
  if (!interleaved && s.pairs > 0) {
    s.first = s.pair, s.second = half + s.pair;
    s.first_count = s.second_count = s.pairs;
    return s;
  }
  const int lanes_before = interleaved ? 0 : (half + kRun - 1) / kRun;
  s.first = (interleaved ? 0 : rotary_dim) + (lane - lanes_before) * 2 * kRun;
  s.second = s.first + kRun;
  s.first_count = clipped(size - s.first), s.second_count = clipped(size - s.second);
  return s;
}

// Eight elements as they lie in memory.
template <class T>
struct alignas(16) Raw {
  T x[kRun];
};

template <class T, int kBytes>
__device__ __forceinline__ void move(T* to, const T* from, int count) {
  constexpr int kElements = kBytes / int(sizeof(T)) > 0 ? kBytes / int(sizeof(T)) : 1;
  using Piece = Vector<T, kElements>;
#pragma unroll
  for (int i = 0; i < kRun; i += kElements)
    if (i < count) *reinterpret_cast<Piece*>(to + i) = *reinterpret_cast<const Piece*>(from + i);
}

// Copies the first `count` elements of two runs; the accesses are of `bytes` bytes, of which `count` elements are a
// multiple (or of single elements, when it is less than 4).
template <class T>
__device__ __forceinline__ void move_two(T* to0, const T* from0, int count0, T* to1, const T* from1, int count1,
                                         int bytes) {
  if (bytes == 16 && sizeof(T) * kRun >= 16) {
    move<T, 16>(to0, from0, count0), move<T, 16>(to1, from1, count1);
  } else if (bytes >= 8) {
    move<T, 8>(to0, from0, count0), move<T, 8>(to1, from1, count1);
  } else if (bytes == 4) {
    move<T, 4>(to0, from0, count0), move<T, 4>(to1, from1, count1);
  } else {
    move<T, 1>(to0, from0, count0), move<T, 1>(to1, from1, count1);
  }
}

// What a pool holds: the bound of a row's |x| / scale, and x as an element. Pools that are not quantized have kMost 0.
template <class C>
struct Element {
  static constexpr float kMost = 0.0f;
  static __device__ __forceinline__ C of(float x, float) { return convert<C>(x); }
};
template <>
struct Element<int8_t> {
  static constexpr float kMost = 127.0f;
  static __device__ __forceinline__ int8_t of(float x, float factor) { return int8_code(multiply(x, factor)); }
};
template <>
struct Element<E4M3> {
  static constexpr float kMost = 448.0f;
  static __device__ __forceinline__ E4M3 of(float x, float factor) {
    E4M3 element;
    element.__x = e4m3_code(multiply(x, factor));
    return element;
  }
};

// x in the lane's share of a head of T.
template <class T>
__device__ __forceinline__ void store(T* head, const Share& s, const float (&x)[2 * kRun], float factor, int bytes) {
  Raw<T> a, b;
#pragma unroll
  for (int i = 0; i < kRun; i++) {
    a.x[i] = Element<T>::of(x[i], factor);
    b.x[i] = Element<T>::of(x[kRun + i], factor);
  }
  move_two(head + s.first, a.x, s.first_count, head + s.second, b.x, s.second_count, bytes);
}

// The sum, or the largest, of a value over the lanes of each group. The whole warp calls it.
__device__ __forceinline__ float sum_of_group(float x, int lanes) {
  for (int i = 1; i < lanes; i *= 2) x += __shfl_xor_sync(0xffffffffu, x, i);
  return x;
}
__device__ __forceinline__ float most_of_group(float x, int lanes) {
  for (int i = 1; i < lanes; i *= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, i));
  return x;
}

// cos and sin of the lane's pairs at one position.
struct Angles {
  float cos[kRun], sin[kRun];
};
template <class Table>
__device__ __forceinline__ void load_angles(Angles& angles, const RotaryTable& rotary, int64_t position,
                                            const Share& s, int bytes) {
  const int64_t at = position * (rotary.rotary_dim / 2) + s.pair;
  Raw<Table> cos = {}, sin = {};
  move_two(cos.x, static_cast<const Table*>(rotary.cos) + at, s.pairs, sin.x,
           static_cast<const Table*>(rotary.sin) + at, s.pairs, bytes);
#pragma unroll
  for (int i = 0; i < kRun; i++) angles.cos[i] = to_float(cos.x[i]), angles.sin[i] = to_float(sin.x[i]);
}

__device__ __forceinline__ void turn_share(float (&x)[2 * kRun], const Angles& angles, const Share& s,
                                           bool interleaved) {
  if (interleaved) {
#pragma unroll
    for (int i = 0; i < kRun; i++)
      if (i < s.pairs) turn(x[2 * i], x[2 * i + 1], angles.cos[i], angles.sin[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kRun; i++)
      if (i < s.pairs) turn(x[i], x[kRun + i], angles.cos[i], angles.sin[i]);
  }
}

}  // namespace kv_write

// One group of lanes a head: first a token's query heads, then its keys, then its values. Blocks of kKvWriteThreads.
template <class T, class C>
__global__ void __launch_bounds__(kKvWriteThreads) kv_write_kernel(KvWriteParams p, KvWritePlan plan) {
  using namespace kv_write;
  const int lanes = 1 << plan.lanes_log2, lane = threadIdx.x & (lanes - 1);
  const int heads_of_token = p.heads + 2 * p.kv_heads;
  const unsigned row = (unsigned(blockIdx.x) * kKvWriteThreads + threadIdx.x) >> plan.lanes_log2;
  const int token = int(row / unsigned(heads_of_token));
  const int head = int(row - unsigned(token) * unsigned(heads_of_token)) - p.heads;  // negative: of the query
  const bool is_query = head < 0, is_value = head >= p.kv_heads;
  const int kv_head = is_value ? head - p.kv_heads : head;
  const int size = is_value ? p.value_dim : p.key_dim;
  const int rotary_dim = is_value ? 0 : p.rotary.rotary_dim;
  const bool exists = token < p.tokens;
  const Share share = share_of(lane, size, rotary_dim, p.rotary.interleaved);

  // Everything is asked for at once: the row itself does not wait for the slot or the number of live rows. (Rows of
  // padding are read in vain; they are few, and memory of the tensor.)
  Raw<T> first = {}, second = {};
  int32_t slot = -1, position = 0, live = p.tokens;
  if (exists) {
    const T* source = static_cast<const T*>(is_query ? p.query : is_value ? p.value : p.key);
    source += is_query   ? token * p.query_token_stride + (head + p.heads) * p.query_head_stride
              : is_value ? token * p.value_token_stride + kv_head * p.value_head_stride
                         : token * p.key_token_stride + kv_head * p.key_head_stride;
    move_two(first.x, source + share.first, share.first_count, second.x, source + share.second, share.second_count,
             is_query   ? plan.query_access
             : is_value ? plan.value_access
                        : plan.key_access);
    if (p.live_tokens != nullptr) live = *p.live_tokens;
    if (!is_query) slot = p.slot_mapping[token];
    if (rotary_dim > 0) position = p.position_ids[token];
  }
  const bool wanted = token < live && (is_query || slot >= 0) && exists;
  ptx::device_check(!wanted || is_query || slot < p.num_slots, "slot_mapping holds a slot beyond the pool");

  Angles angles;
  if (wanted && rotary_dim > 0) {
    ptx::device_check(position >= 0 && position < p.rotary.max_positions, "position_ids is beyond cos and sin");
    if (p.rotary.float_table) load_angles<float>(angles, p.rotary, position, share, plan.table_access);
    else load_angles<T>(angles, p.rotary, position, share, plan.table_access);
  }
  float x[2 * kRun];
#pragma unroll
  for (int i = 0; i < kRun; i++) x[i] = to_float(first.x[i]), x[kRun + i] = to_float(second.x[i]);

  if (p.key_norm_weight != nullptr || p.query_norm_weight != nullptr) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 2 * kRun; i++) sum += x[i] * x[i];
    const float factor = 1.0f / sqrtf(sum_of_group(sum, lanes) / float(size) + p.epsilon);
    const T* weight = static_cast<const T*>(is_query ? p.query_norm_weight : is_value ? nullptr : p.key_norm_weight);
    if (weight != nullptr) {
      move_two(first.x, weight + share.first, share.first_count, second.x, weight + share.second, share.second_count,
               plan.weight_access);
#pragma unroll
      for (int i = 0; i < kRun; i++) {
        x[i] = multiply(multiply(x[i], factor), to_float(first.x[i]));
        x[kRun + i] = multiply(multiply(x[kRun + i], factor), to_float(second.x[i]));
      }
    }
  }
  if (wanted && rotary_dim > 0) turn_share(x, angles, share, p.rotary.interleaved);

  float factor = 1.0f;
  if constexpr (Element<C>::kMost > 0.0f) {
    float* token_scale = is_value ? p.value_token_scale : p.key_token_scale;
    if (p.key_token_scale != nullptr || p.value_token_scale != nullptr) {
      float most = 0.0f;
#pragma unroll
      for (int i = 0; i < 2 * kRun; i++) most = fmaxf(most, fabsf(x[i]));
      const float scale = most_of_group(most, lanes) / Element<C>::kMost;
      const bool tiny = scale < kLeastScale;  // 1 / scale could overflow: such a row is zero
      factor = tiny ? 0.0f : 1.0f / scale;
      if (wanted && !is_query && lane == 0)
        token_scale[int64_t(slot) * p.kv_heads + kv_head] = tiny ? 0.0f : scale;
    } else if (wanted && !is_query) {
      factor = 1.0f / (is_value ? p.value_scale[kv_head * p.value_scale_stride]
                                : p.key_scale[kv_head * p.key_scale_stride]);
    }
  }
  if (!wanted) return;
  if (is_query) {
    T* to = static_cast<T*>(p.query_out) + token * p.query_out_token_stride + (head + p.heads) * p.query_out_head_stride;
    store(to, share, x, 1.0f, plan.query_out_access);
  } else {
    C* to = static_cast<C*>(is_value ? p.value_cache : p.key_cache) + (int64_t(slot) * p.kv_heads + kv_head) * size;
    store(to, share, x, factor, is_value ? plan.value_cache_access : plan.key_cache_access);
  }
}

}  // namespace slipway
