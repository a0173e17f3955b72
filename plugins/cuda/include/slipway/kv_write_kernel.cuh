// The kernel of kv_write.
#pragma once
#include <cstdint>
#include <type_traits>

#include "slipway/kv_write.cuh"
#include "slipway/runs.cuh"

namespace slipway {

// A row whose largest |x| / (127 or 448) is less has scale 0 and elements 0: the least normal float.
constexpr float kLeastScale = 1.17549435e-38f;
constexpr int kKvWriteThreads = 128;

// Where one of the three kinds of rows (queries, keys, values) comes from and goes to. Strides are in
// elements. Accesses are the widest, in bytes, that all runs of an array allow: 16, 8, 4, or less for single
// elements.
struct KvWritePart {
  const void* source;  // [tokens, heads, size] T
  void* target;        // [tokens, heads, size] T of the queries; [slots, heads, size] C of the others
  const void* weight;  // [size] T, of the norm; or null
  const float* scale;  // one a head, scale_stride apart; or null
  float* token_scale;  // [slots, heads], or null
  int token_stride, head_stride, target_token_stride, target_head_stride, scale_stride;
  int access, target_access, weight_access;
  int size, rotary_dim, first_head;  // first_head: in the order of a token's heads
};

// What a launch needs besides the parameters. A group of 2^lanes_log2 threads has a head; each of them holds
// two runs of 8 elements, chosen so that both elements of a rotary pair are in one thread.
struct KvWritePlan {
  KvWritePart parts[3];  // queries, keys, values
  int heads_of_token, lanes_log2, table_access;
  bool norm, by_token;  // some part has a weight; each row has its own scale
};

namespace kv_write {

// The elements of a head that one lane holds: [first, first + first_count) and [second, second +
// second_count), and the rotary pairs [pair, pair + pairs) that these make up.
struct Share {
  int first, first_count, second, second_count;
  int pair, pairs;
};

__host__ __device__ __forceinline__ int clipped(int count) {
  return count < 0 ? 0 : count < kRun ? count : kRun;
}

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
  const int begin = interleaved ? 0 : rotary_dim - (half + kRun - 1) / kRun * 2 * kRun;
  s.first = begin + lane * 2 * kRun, s.second = s.first + kRun;
  s.first_count = clipped(size - s.first), s.second_count = clipped(size - s.second);
  return s;
}

// What a pool holds: the most that |x| / scale may be (0 where nothing is scaled), and a word of elements.
template <class C>
struct Element {
  static constexpr float kMost = 0.0f;
  static __device__ __forceinline__ uint32_t word(const float* x, float) {
    if constexpr (sizeof(C) == 4) return __float_as_uint(x[0]);
    else return pack<C>(x[0], x[1]);
  }
};
template <>
struct Element<int8_t> {
  static constexpr float kMost = 127.0f;
  static __device__ __forceinline__ uint32_t word(const float* x, float factor) {
    return pack_int8(multiply(x[0], factor), multiply(x[1], factor), multiply(x[2], factor),
                     multiply(x[3], factor));
  }
};
template <>
struct Element<e4m3> {
  static constexpr float kMost = 448.0f;
  static __device__ __forceinline__ uint32_t word(const float* x, float factor) {
    return pack_e4m3(multiply(x[0], factor), multiply(x[1], factor), multiply(x[2], factor),
                     multiply(x[3], factor));
  }
};

template <class T>
__device__ __forceinline__ void load_share(Run<T> (&held)[2], const T* head, const Share& s, int bytes) {
  load_two(held[0], head + s.first, s.first_count, held[1], head + s.second, s.second_count, bytes);
}

// The floats of two runs.
template <class T>
__device__ __forceinline__ void spread(float (&x)[2 * kRun], const Run<T> (&held)[2]) {
  constexpr int kPer = Run<T>::kPerWord;
#pragma unroll
  for (int i = 0; i < 2 * kRun / kPer; i++) {
    float part[kPer];
    split_word<T>(held[i * kPer / kRun].words[i % Run<T>::kWords], part);
#pragma unroll
    for (int j = 0; j < kPer; j++) x[i * kPer + j] = part[j];
  }
}

// x to the lane's share of a head of C.
template <class C>
__device__ __forceinline__ void store_share(C* head, const Share& s, const float (&x)[2 * kRun], float factor,
                                            int bytes) {
  Run<C> held[2];
#pragma unroll
  for (int i = 0; i < Run<C>::kWords; i++) {
    held[0].words[i] = Element<C>::word(x + i * Run<C>::kPerWord, factor);
    held[1].words[i] = Element<C>::word(x + kRun + i * Run<C>::kPerWord, factor);
  }
  store_two(head + s.first, held[0], s.first_count, head + s.second, held[1], s.second_count, bytes);
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

// cos, then sin, of the lane's pairs at one position.
template <class Table>
__device__ __forceinline__ void load_angles(float (&angles)[2 * kRun], const RotaryTable& rotary,
                                            int64_t position, const Share& s, int bytes) {
  const int64_t at = position * (rotary.rotary_dim / 2) + s.pair;
  Run<Table> held[2];
  load_two(held[0], static_cast<const Table*>(rotary.cos) + at, s.pairs, held[1],
           static_cast<const Table*>(rotary.sin) + at, s.pairs, bytes);
  spread(angles, held);
}

__device__ __forceinline__ void turn_share(float (&x)[2 * kRun], const float (&angles)[2 * kRun],
                                           const Share& s, bool interleaved) {
  if (interleaved) {
#pragma unroll
    for (int i = 0; i < kRun; i++)
      if (i < s.pairs) turn(x[2 * i], x[2 * i + 1], angles[i], angles[kRun + i]);
  } else {
#pragma unroll
    for (int i = 0; i < kRun; i++)
      if (i < s.pairs) turn(x[i], x[kRun + i], angles[i], angles[kRun + i]);
  }
}

}  // namespace kv_write

// One group of lanes a head: first a token's query heads, then its keys, then its values. Blocks of
// kKvWriteThreads.
template <class T, class C>
__global__ void __launch_bounds__(kKvWriteThreads, 7) kv_write_kernel(KvWriteParams p, KvWritePlan plan) {
  using namespace kv_write;
  const int lanes = 1 << plan.lanes_log2, lane = int(threadIdx.x) & (lanes - 1);
  const unsigned row = (unsigned(blockIdx.x) * kKvWriteThreads + threadIdx.x) >> plan.lanes_log2;
  const int token = int(row / unsigned(plan.heads_of_token));
  const int place = int(row - unsigned(token) * unsigned(plan.heads_of_token));  // among the token's heads
  const int kind = (place >= plan.parts[1].first_head) + (place >= plan.parts[2].first_head);
  const bool is_query = kind == 0;
  const KvWritePart& part = plan.parts[kind];
  const int head = place - part.first_head;
  const Share share = share_of(lane, part.size, part.rotary_dim, p.rotary.interleaved);

  // Everything is asked for at once: the row itself does not wait for the slot or the number of live rows.
  // (Rows of padding are read in vain; they are few, and memory of the tensor.)
  Run<T> held[2] = {};
  int32_t slot = -1, position = 0, live = p.tokens;
  const bool exists = token < p.tokens;
  if (exists) {
    if (p.live_tokens != nullptr) live = *p.live_tokens;
    if (!is_query) slot = p.slot_mapping[token];
    if (part.rotary_dim > 0) position = p.position_ids[token];
    load_share(held, static_cast<const T*>(part.source) + int64_t(token) * part.token_stride +
                         int64_t(head) * part.head_stride, share, part.access);
  }
  const bool wanted = exists && token < live && (is_query || slot >= 0);
  ptx::device_check(!wanted || is_query || slot < p.num_slots, "slot_mapping holds a slot beyond the pool");
  const bool turns = wanted && part.rotary_dim > 0;

  float angles[2 * kRun];
  if (turns) {
    ptx::device_check(position >= 0 && position < p.rotary.max_positions,
                      "position_ids is beyond cos and sin");
    if (p.rotary.float_table) load_angles<float>(angles, p.rotary, position, share, plan.table_access);
    else load_angles<T>(angles, p.rotary, position, share, plan.table_access);
  }
  float x[2 * kRun];
  spread(x, held);

  if (plan.norm) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 2 * kRun; i++) sum += x[i] * x[i];
    const float factor = 1.0f / sqrtf(sum_of_group(sum, lanes) / float(part.size) + p.epsilon);
    if (part.weight != nullptr) {
      float weights[2 * kRun];
      load_share(held, static_cast<const T*>(part.weight), share, part.weight_access);
      spread(weights, held);
#pragma unroll
      for (int i = 0; i < 2 * kRun; i++) x[i] = multiply(multiply(x[i], factor), weights[i]);
    }
  }
  if (turns) turn_share(x, angles, share, p.rotary.interleaved);

  float factor = 1.0f;
  if constexpr (Element<C>::kMost > 0.0f) {
    if (plan.by_token) {
      float most = 0.0f;
#pragma unroll
      for (int i = 0; i < 2 * kRun; i++) most = fmaxf(most, fabsf(x[i]));
      const float scale = most_of_group(most, lanes) / Element<C>::kMost;
      const bool tiny = scale < kLeastScale;  // 1 / scale could overflow: such a row is zero
      factor = tiny ? 0.0f : 1.0f / scale;
      if (wanted && !is_query && lane == 0)
        part.token_scale[int64_t(slot) * p.kv_heads + head] = tiny ? 0.0f : scale;
    } else if (wanted && !is_query) {
      factor = 1.0f / part.scale[head * part.scale_stride];
    }
  }
  if (!wanted) return;
  const int64_t at = int64_t(is_query ? token : slot) * part.target_token_stride +
                     int64_t(head) * part.target_head_stride;
  if constexpr (!std::is_same_v<T, C>) {
    if (is_query) {
      store_share(static_cast<T*>(part.target) + at, share, x, 1.0f, part.target_access);
      return;
    }
  }
  store_share(static_cast<C*>(part.target) + at, share, x, factor, part.target_access);
}

}  // namespace slipway
