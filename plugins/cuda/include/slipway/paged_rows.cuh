// The query rows of an item: which they are, what they see, and where their results go.
#pragma once
#include "slipway/paged_pool.cuh"
#include "slipway/scores.cuh"
#include "slipway/softmax.cuh"

namespace slipway {

// How a row ends; everything in base 2 but the sink, which is a natural logit (-INFINITY: none).
__device__ __forceinline__ RowEnd finish_row(float maximum, float sum, float sink) {
  const float sink2 = sink * kLog2e, top = fmaxf(maximum, sink2);
  if (top == -INFINITY) return {0.f, -INFINITY};
  const float weight = ptx::exp2(maximum - top);  // 1 without a sink
  const float total = fmaf(sum, weight, ptx::exp2(sink2 - top));
  return {weight / total, (top + log2f(total)) * kLn2};
}
template <class T>
__device__ __forceinline__ float head_sink(const PagedAttentionParams& p, int head) {
  return p.head_sink == nullptr ? -INFINITY : to_float(static_cast<const T*>(p.head_sink)[head]);
}

// Scales of 8-bit pools that are the same for all keys of a head. A probability that is multiplied with the scale of
// its value is moved up by kProbabilityLift too, so that half holds it.
constexpr float kProbabilityLift = 64.f;
__device__ __forceinline__ float key_factor(const PagedAttentionParams& p, int kv_head) {
  return p.key_scale == nullptr || p.token_scales ? 1.f : p.key_scale[kv_head * p.key_scale_stride];
}
__device__ __forceinline__ float value_factor(const PagedAttentionParams& p, int kv_head) {
  if (p.token_scales) return 1.f / kProbabilityLift;
  return p.value_scale == nullptr ? 1.f : p.value_scale[kv_head * p.value_scale_stride];
}

// Where a row is among queries and results.
struct RowPlace {
  static constexpr int kNoRow = -1;
  int token;  // -1: no such row
  int head;   // of the query
  int slot;   // of the partial result; -1: the result itself is written
  int position;  // in its sequence; kNoRow: no such row, which sees nothing
};

// The two rows of a lane, in the order of accumulators: lane / 4 of its warp's 16 rows, and 8 below.
struct PagedRows {
  RowPlace* places;   // of the warp's 16 rows, in shared memory: registers are dearer
  KeyRange keys;      // of the item
  KeyRange all_see;   // keys that every row of the warp sees
  KeyRange any_sees;  // and those that some row sees
  int past;           // the first new key, for the tree mask

  // first: the warp's first row, counted in the item; shared: [kPagedWarps][16], which all lanes may read on return.
  __device__ __forceinline__ PagedRows(const PagedAttentionParams& p, const AttentionItem& item, int kv_head, int first,
                                       RowPlace* shared)
      : places(shared + ptx::fresh_thread() / 32 * 16), keys{item.key_begin, item.key_end} {
    const int group = p.limits.heads / p.limits.kv_heads;
    all_see = {0, 1 << 30}, any_sees = {1 << 30, 0};
    past = item.list < 0 ? p.past_lens[item.sequence] : 1 << 30;
    const int lane = ptx::fresh_thread() % 32;
    __syncwarp();  // all lanes are done with the places of the item before
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int in_warp = lane / 4 + 8 * h, row = first + in_warp;
      RowPlace place = {-1, 0, -1, RowPlace::kNoRow};
      if (row < item.rows) {
        const int index = (item.first_row + row) / group;
        int sequence = item.sequence;
        if (item.list >= 0) {
          place.token = p.plan.shared_tokens[item.list + index];
          sequence = p.plan.token_sequence[place.token];
        } else {
          place.token = p.cu_seqlens[sequence] + index;
        }
        place.head = kv_head * group + (item.first_row + row) % group;
        const int number = place.token - p.cu_seqlens[sequence];
        const AttentionSequence& s = p.plan.sequences[sequence];
        if (item.chunk >= 0 && s.slot >= 0) place.slot = s.slot + number * s.chunks + item.chunk - s.first_chunk;
        place.position = p.past_lens[sequence] + number;
        const KeyRange seen = sees(p, place.position);
        all_see = {max(all_see.begin, seen.begin), min(all_see.end, seen.end)};
        any_sees = {min(any_sees.begin, seen.begin), max(any_sees.end, seen.end)};
      }
      if (lane % 4 == 0) places[in_warp] = place;
    }
    __syncwarp();
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      all_see.begin = max(all_see.begin, __shfl_xor_sync(0xffffffffu, all_see.begin, step));
      all_see.end = min(all_see.end, __shfl_xor_sync(0xffffffffu, all_see.end, step));
      any_sees.begin = min(any_sees.begin, __shfl_xor_sync(0xffffffffu, any_sees.begin, step));
      any_sees.end = max(any_sees.end, __shfl_xor_sync(0xffffffffu, any_sees.end, step));
    }
  }

  // Keys of the item that a row at `position` sees.
  __device__ __forceinline__ KeyRange sees(const PagedAttentionParams& p, int position) const {
    const KeyRange visible = visible_keys(p.mask, position, keys.end);
    return {max(visible.begin, keys.begin), visible.end};
  }

  __device__ __forceinline__ RowPlace place(int h) const { return places[ptx::fresh_thread() % 32 / 4 + 8 * h]; }

  template <class T>
  __device__ __forceinline__ const T* query(const PagedAttentionParams& p, int h) const {
    const RowPlace at = place(h);
    if (at.token < 0) return nullptr;
    return static_cast<const T*>(p.query) + at.token * p.query_row + int64_t(at.head) * p.key_dim;
  }

  // From dot products to logits in base 2 (but for map.factor); hidden keys become -inf. key: of the first block.
  template <int Blocks>
  __device__ __forceinline__ void mask_scores(float (&s)[Blocks][4], const PagedAttentionParams& p,
                                              const ScoreMap& map, int key, int lane) const {
    const int column = key + lane % 4 * 2;
    if (map.changes) {
      scale_scores(s, map);
      if (p.mask.alibi_slopes != nullptr) {
#pragma unroll
        for (int h = 0; h < 2; h++)
          add_alibi(s, h, p.mask.alibi_slopes[place(h).head] * kLog2e, place(h).position, column);
      }
    }
    const bool in_tree = p.tree_mask != nullptr && key + 8 * Blocks > past;
    if (key >= all_see.begin && key + 8 * Blocks <= all_see.end && !in_tree) return;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      hide_scores(s, h, sees(p, place(h).position), column);
      if (in_tree && place(h).token >= 0) hide_branches(s, p, h, column);
    }
  }

  // New keys that row h's token does not see by the tree mask.
  template <int Blocks>
  __device__ __forceinline__ void hide_branches(float (&s)[Blocks][4], const PagedAttentionParams& p, int h,
                                                int column) const {
    const unsigned char* mask = p.tree_mask + int64_t(place(h).token) * p.max_new;
#pragma unroll
    for (int n = 0; n < Blocks; n++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int key = column + 8 * n + i - past;
        if (key >= 0 && key < p.max_new && mask[key] == 0)
          s[n][2 * h + i] = -INFINITY;
      }
  }

  // Writes row h: `Groups` groups of 16 columns from `first_group` on. Every lane of the quad calls it; `states`: it
  // also writes maximum and sum, or log_sum_exp.
  template <class T, PoolKind Kind, int D, int Groups>
  __device__ __forceinline__ void store(const PagedAttentionParams& p, int h, const float (&acc)[2 * Groups][4],
                                        int first_group, float maximum, float sum, float factor, bool states) const {
    using Tile = PoolTile<T, Kind, D>;
    const RowPlace at = place(h);
    if (at.token < 0) return;
    const bool partial = at.slot >= 0;
    const int64_t row = int64_t(partial ? at.slot : at.token) * p.limits.heads + at.head;
    const RowEnd end = finish_row(maximum, sum, head_sink<T>(p, at.head));
    states = states && ptx::fresh_thread() % 4 == 0;
    if (states && partial)
      *reinterpret_cast<float2*>(p.partial_state + 2 * row) = float2{maximum, sum};
    else if (states && p.log_sum_exp != nullptr)
      p.log_sum_exp[row] = end.log_sum_exp;
#pragma unroll
    for (int g = 0; g < Groups; g++)
#pragma unroll
      for (int pair = 0; pair < 2; pair++) {  // two neighbouring columns
        const int block = Tile::k8Bit ? 0 : pair, i = Tile::k8Bit ? pair : 0;
        const int column = 16 * (first_group + g) + Tile::value_column(block, i);
        if (column >= p.value_dim) continue;
        const float x = acc[2 * g + block][2 * h + i];
        const float y = Tile::k8Bit ? acc[2 * g + 1][2 * h + i] : acc[2 * g + block][2 * h + 1];
        if (partial)
          *reinterpret_cast<float2*>(p.partial_output + row * p.value_dim + column) = float2{x, y};
        else
          *reinterpret_cast<uint32_t*>(static_cast<T*>(p.output) + row * p.value_dim + column) =
              pack<T>(x * end.inverse * factor, y * end.inverse * factor);
      }
  }
};

}  // namespace slipway
