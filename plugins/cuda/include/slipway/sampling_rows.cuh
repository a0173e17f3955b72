// Rows of logits and the parameters that they are sampled by; how they are cut into work, and read.
#pragma once
#include <cstdint>

#include "slipway/numeric.cuh"
#include "slipway/sampling_search.cuh"

namespace slipway {
namespace sampling {

constexpr int kSegment = 1024;             // tokens that one warp goes through at a time
constexpr int kMaxSegmentsPerSlice = 256;  // bounds shared memory
constexpr int kMaxSplits = 128;

// Groups of tokens whose largest values bound the top-k, at most. Tests of small vocabularies set it lower.
#ifndef SLIPWAY_SAMPLING_GROUPS
#define SLIPWAY_SAMPLING_GROUPS 2048
#endif
constexpr int kMaxGroups = SLIPWAY_SAMPLING_GROUPS;

// What a block of every kernel needs to know. Arrays of [requests] may be NULL: then the value in brackets holds.
// Row r belongs to request r / rows_per_request.
struct Rows {
  const void* logits = nullptr;  // [rows, vocab] of T; NaN or +inf anywhere: nothing can be chosen
  int64_t row_stride = 0;        // elements, at least vocab
  int rows = 0, vocab = 0, rows_per_request = 1;
  const float* temperature = nullptr;  // [requests] [1]; 0 is greedy
  const int32_t* top_k = nullptr;      // [requests] [every_top_k]; 0 and vocab or more are off, 1 is greedy
  const float* top_p = nullptr;        // [requests] [1]; below 1: as many of the likeliest as reach this share
  const float* min_p = nullptr;        // [requests] [0]; probability relative to the likeliest token's
  int every_top_k = 0;
  bool log_probs = false;  // the model's own distribution: tokens of logit -inf are ranked too
  // Adjustments of the logits, in this order.
  const int32_t* bias_ids = nullptr;   // [requests, bias_length]; ids in [0, vocab), after the last of them -1
  const float* bias_values = nullptr;  // [requests, bias_length]; added
  int bias_length = 0;
  int16_t* token_counts = nullptr;       // [slots, vocab]: times chosen (15 bits, saturating); bit 15: in the prompt
  const int32_t* count_slots = nullptr;  // [requests] [the request's index]; outside the table: no penalties
  int slots = 0;
  const float* repetition_penalty = nullptr;  // [requests] [1]; of tokens in prompt or output (Keskar et al. 2019)
  const float* frequency_penalty = nullptr;   // [requests] [0]; taken off for each time that a token was chosen
  const float* presence_penalty = nullptr;    // [requests] [0]; taken off once if a token was chosen
  const uint32_t* allowed = nullptr;          // [rows, ceil(vocab / 32)]; bit i % 32 of word i / 32 allows token i
};

// How rows are dealt out; decided by shapes alone. Results do not depend on it.
struct Division {
  int segments = 0;     // of a row: ceil(vocab / kSegment)
  int splits = 0;       // slices of a row, one block each
  int slice = 0;        // segments a slice (the last may have fewer)
  int warps = 0;        // a block of the slice kernels
  int group_lanes = 0;  // lanes that share a group: power of two
  int groups = 0;       // of a row: splits * warps * 32 / group_lanes, at most kMaxGroups
  int capacity = 0;     // candidates that are listed at most
  int finish_warps = 0;  // a block of the kernels that have one block a row
};

struct SliceMaximum {
  float value;
  int index;     // the least of that value
  int unusable;  // the slice holds NaN or +inf
};

template <class T>
__device__ __forceinline__ T value_or(const T* array, int request, T standard) {
  return array == nullptr ? standard : array[request];
}

// Row of token_counts that belongs to a request, or NULL.
__device__ __forceinline__ int16_t* counts_of(const Rows& p, int request) {
  if (p.token_counts == nullptr) return nullptr;
  const int slot = value_or(p.count_slots, request, request);
  return slot >= 0 && slot < p.slots ? p.token_counts + int64_t(slot) * p.vocab : nullptr;
}

struct Adjustments {
  const int16_t* counts;  // NULL: no penalties
  float repetition, frequency, presence;
  const int32_t* bias_ids;  // NULL: none
  const float* bias_values;
  const uint32_t* allowed;
  __device__ bool any() const { return counts != nullptr || bias_ids != nullptr || allowed != nullptr; }
};
__device__ __forceinline__ Adjustments adjustments_of(const Rows& p, int row) {
  const int request = row / p.rows_per_request;
  Adjustments a;
  a.repetition = value_or(p.repetition_penalty, request, 1.0f);
  a.frequency = value_or(p.frequency_penalty, request, 0.0f);
  a.presence = value_or(p.presence_penalty, request, 0.0f);
  const bool penalties = a.repetition != 1.0f || a.frequency != 0.0f || a.presence != 0.0f;
  a.counts = penalties ? counts_of(p, request) : nullptr;
  const int64_t first = int64_t(request) * p.bias_length;
  const bool biased = p.bias_length > 0 && p.bias_ids[first] >= 0;
  a.bias_ids = biased ? p.bias_ids + first : nullptr;
  a.bias_values = biased ? p.bias_values + first : nullptr;
  a.allowed = p.allowed == nullptr ? nullptr : p.allowed + int64_t(row) * ((p.vocab + 31) / 32);
  return a;
}

template <class E>
struct alignas(4 * sizeof(E)) Quad {
  E element[4];
};

// Reads a row: the logits themselves, or their adjusted copy.
template <class T>
struct RowReader {
  const T* logits;
  const float* adjusted;  // NULL: there is none
  int vocab;
  bool wide;  // rows begin at multiples of four elements

  __device__ RowReader(const Rows& p, const float* adjusted_rows, int row)
      : logits(static_cast<const T*>(p.logits) + row * p.row_stride),
        adjusted(adjusted_rows == nullptr || !adjustments_of(p, row).any() ? nullptr
                                                                           : adjusted_rows + int64_t(row) * p.vocab),
        vocab(p.vocab),
        wide((adjusted != nullptr ? p.vocab : p.row_stride) % 4 == 0) {}

  __device__ float operator[](int index) const {
    return adjusted != nullptr ? adjusted[index] : to_float(logits[index]);
  }
  // Four tokens from `at` on, a multiple of 4; -inf from vocab on.
  __device__ __forceinline__ void load(int at, float (&values)[4]) const {
    if (adjusted != nullptr) load_from(adjusted, at, values);
    else load_from(logits, at, values);
  }
  template <class E>
  __device__ __forceinline__ void load_from(const E* row, int at, float (&values)[4]) const {
    if (wide && at + 4 <= vocab) {
      const Quad<E> quad = *reinterpret_cast<const Quad<E>*>(row + at);
#pragma unroll
      for (int i = 0; i < 4; i++) values[i] = to_float(quad.element[i]);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) values[i] = at + i < vocab ? to_float(row[at + i]) : -INFINITY;
    }
  }
};

// Calls f(index, value) for the calling lane's tokens of a segment, in order of index. Called by a whole warp. kAhead:
// quads that are loaded before f sees the first of them. A short f is bound by memory and wants 4; a long one, which is
// repeated in the code for each token of these quads, 1.
template <int kAhead, class T, class F>
__device__ __forceinline__ void visit_tokens(const RowReader<T>& row, int segment, F f) {
#pragma unroll 1
  for (int part = 0; part < kSegment; part += kAhead * 128) {
    float values[kAhead][4];
    const int first = segment * kSegment + part + lane_index() * 4;
#pragma unroll
    for (int i = 0; i < kAhead; i++) row.load(first + i * 128, values[i]);
#pragma unroll
    for (int i = 0; i < 4 * kAhead; i++) {
      const int index = first + i / 4 * 128 + i % 4;
      if (index < row.vocab) f(index, values[i / 4][i % 4]);
    }
  }
}

}  // namespace sampling
}  // namespace slipway
