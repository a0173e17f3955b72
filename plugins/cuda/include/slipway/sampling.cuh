// The token of each row by its random number, and log-probabilities of the model.
//
// A row is sampled as the CPU runtime does: adjustments, division by the temperature, top-k, min-p, then top-p of what
// they leave (ties at the smaller ids), and the kept tokens' running sum in order of token id is looked up by the
// number philox(seed, position). Top-p: Holtzman et al., "The curious case of neural text degeneration", 2019.
#pragma once
#include <cstdint>

#include "slipway/sampling_resolve.cuh"

namespace slipway {
namespace sampling {

constexpr int kMaxTop = 64;  // alternatives with log-probabilities

struct Draws {
  const u64* seed;          // [rows]
  const int32_t* position;  // [rows]: index of the output token, 0 for the first
  int32_t* token;           // [rows]; -1: nothing can be chosen
};

struct LogProbs {
  const int32_t* token;   // [rows]; -1 gives NaN
  float* token_log_prob;  // [rows] or NULL
  int32_t* top_ids;       // [rows, top] or NULL: the likeliest tokens, likeliest first; among equals the smaller id
  float* top_log_probs;   // [rows, top] or NULL
  int top;                // at most kMaxTop and vocab
};

__host__ __device__ inline int draw_shared_bytes(const Division& d) {
  return finish_shared_bytes(d) + 2 * d.segments * int(sizeof(uint32_t));
}

template <class T>
__device__ int draw(const Rows& p, const Division& d, const Workspace& w, const RowPlan& plan, int row, u64 word,
                    unsigned char* memory) {
  FinishMemory* const finish = reinterpret_cast<FinishMemory*>(memory);
  const u64* const segment_weights = w.segment_weight + int64_t(row) * d.segments;
  const InQuestion<T> source(p, d, w, plan, row, finish);
  const Kept kept = resolve(source, filters_of(p, row), segment_weights, &finish->search);
  const Sums sums(reinterpret_cast<uint32_t*>(memory + finish_shared_bytes(d)), d.segments);
  sums.start([&](int i) { return segment_weights[i]; });
  __syncthreads();
  if (plan.state != RowState::kWhole)
    source.visit([&](uint32_t key, int index) {
      const u64 weight = kept.weight_at(key, index);
      if (weight > 0) sums.add(index / kSegment, weight);
    });
  __syncthreads();
  if (threadIdx.x >= 32) return -1;
  return token_at(source.reader, d.segments, sums, random_below(word, kept.weight),
                  [&](int index, float value) {
                    return kept.weight_at(key_of(value, plan.largest, plan.temperature), index);
                  });
}

__device__ __forceinline__ void count_token(int16_t* counts, int token) {
  const int count = counts[token];
  if ((count & 0x7fff) != 0x7fff) counts[token] = int16_t(count + 1);
}

// Grid (rows), finish_warps warps a block.
template <class T>
__global__ void __launch_bounds__(512, 1) draw_kernel(Rows p, Division d, Workspace w, Draws o) {
  DYNAMIC_SMEM(memory);
  const int row = int(blockIdx.x);
  const RowPlan plan = final_plan(p, w, row);
  int token = -1;
  if (plan.state == RowState::kGreedy) token = plan.largest_index;
  else if (plan.state != RowState::kUnusable)
    token = draw<T>(p, d, w, plan, row, philox(o.seed[row], u64(o.position[row])).word[0], memory);
  if (threadIdx.x != 0) return;
  o.token[row] = token;
  int16_t* const counts = counts_of(p, row / p.rows_per_request);
  if (counts != nullptr && token >= 0) count_token(counts, token);
}

struct TopMemory {  // after FinishMemory
  uint32_t count;
  uint32_t key[kMaxTop];
  int index[kMaxTop];
};

// Writes the likeliest tokens of a row. Called by all threads of a block.
template <class T>
__device__ void write_top(const InQuestion<T>& source, const LogProbs& o, int row, double normalizer,
                          SearchMemory* search, TopMemory* m) {
  auto tokens = [&](auto take) {  // by the logits themselves: distances of different logits may be equal
    source.visit([&](uint32_t, int index) { take(descending_key(source.reader[index]), index); });
  };
  const Found found = radix_search<Measure::kCount>(search, u64(o.top), [&](auto take) {
    tokens([&](uint32_t key, int) { take(key, u64(0)); });
  });
  const u64 same = u64(o.top) - found.count_less;
  const int last = same < found.count_same ? last_of_equals(search, found.key, same, tokens) : kMaxVocab;
  if (threadIdx.x == 0) m->count = 0;
  __syncthreads();
  tokens([&](uint32_t key, int index) {
    if (key > found.key || (key == found.key && index > last)) return;
    const uint32_t place = atomicAdd(&m->count, 1u);
    m->key[place] = key, m->index[place] = index;
  });
  __syncthreads();
  for (int i = int(threadIdx.x); i < o.top; i += int(blockDim.x)) {
    int rank = 0;
    for (int j = 0; j < o.top; j++)
      rank += m->key[j] < m->key[i] || (m->key[j] == m->key[i] && m->index[j] < m->index[i]);
    const int64_t at = int64_t(row) * o.top + rank;
    if (o.top_ids != nullptr) o.top_ids[at] = m->index[i];
    if (o.top_log_probs != nullptr) o.top_log_probs[at] = float(double(source.reader[m->index[i]]) - normalizer);
  }
}

// After survey_kernel and collect_kernel with `p.log_probs`. Grid (rows), finish_warps warps a block.
template <class T>
__global__ void __launch_bounds__(512, 1) log_prob_kernel(Rows p, Division d, Workspace w, LogProbs o) {
  DYNAMIC_SMEM(memory);
  const int row = int(blockIdx.x), token = o.token[row];
  RowPlan plan = final_plan(p, w, row);
  if (plan.state == RowState::kUnusable) {
    if (threadIdx.x == 0 && o.token_log_prob != nullptr) o.token_log_prob[row] = NAN;
    for (int i = int(threadIdx.x); i < o.top; i += int(blockDim.x)) {
      if (o.top_ids != nullptr) o.top_ids[int64_t(row) * o.top + i] = -1;
      if (o.top_log_probs != nullptr) o.top_log_probs[int64_t(row) * o.top + i] = NAN;
    }
    return;
  }
  if (plan.state == RowState::kWhole) plan.in_question = ~u64(0);  // all tokens are to be ranked; no list holds them
  const u64 total = warp_total(d.segments, [&](int i) { return w.segment_weight[int64_t(row) * d.segments + i]; });
  const double normalizer = double(plan.largest) + log(double(total) * (1.0 / double(1ull << kWeightBits)));
  FinishMemory* const finish = reinterpret_cast<FinishMemory*>(memory);
  const InQuestion<T> source(p, d, w, plan, row, finish);
  if (threadIdx.x == 0 && o.token_log_prob != nullptr)
    o.token_log_prob[row] = token >= 0 ? float(double(source.reader[token]) - normalizer) : NAN;
  if (o.top > 0) write_top(source, o, row, normalizer, &finish->search,
                           reinterpret_cast<TopMemory*>(memory + finish_shared_bytes(d)));
}

}  // namespace sampling
}  // namespace slipway
