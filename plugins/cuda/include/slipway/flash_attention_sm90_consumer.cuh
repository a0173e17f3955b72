// A consumer of flash_attention's form for sm_90a: one warpgroup, which computes 64 query rows by wgmma.
#pragma once
#include "slipway/flash_attention_sm90_output.cuh"
#include "slipway/flash_attention_sm90_shape.cuh"
#include "slipway/scores.cuh"
#include "slipway/softmax.cuh"

namespace slipway {

enum Sm90NamedBarrier { kTurn = 1, kAllConsumers = 4, kOwnGroup = 5 };  // kTurn and kOwnGroup: one a consumer

template <class Shape>
struct Sm90Consumer {
  using T = typename Shape::T;
  using Out = typename Shape::Out;
  static constexpr int D = Shape::kHeadSize, BlockN = Shape::kBlockN, Blocks = BlockN / 8;
  static constexpr int Steps = BlockN / Shape::kStepKeys;  // of the second product
  using Softmax = OnlineSoftmax<Shape::kShift>;

  const FlashAttentionParams& call;
  unsigned char* shared;
  Sm90Barriers<Shape> barriers;
  int group, thread;  // thread of the warpgroup
  // The tile at hand. Its fields are read again wherever they are needed: registers are dearer.
  const Sm90Work* work;
  uint32_t count;  // of key and value tiles that this consumer is through with

  // The other consumers have issued their products; then, it is the next one's turn.
  __device__ __forceinline__ void wait_for_turn() const {
    if constexpr (Shape::kTakesTurns) ptx::named_barrier_wait(kTurn + group, 256);
  }
  __device__ __forceinline__ void pass_turn() const {
    if constexpr (Shape::kTakesTurns)
      ptx::named_barrier_arrive(kTurn + (group + 1 == Shape::kConsumers ? 0 : group + 1), 256);
  }
  // This warp has read a tile.
  __device__ __forceinline__ void release(uint64_t* empty) const {
    __syncwarp();
    if (thread % 32 == 0) ptx::mbarrier_arrive(empty);
  }

  __device__ __forceinline__ void wait_for_keys(uint32_t tile) const {
    ptx::mbarrier_wait(barriers.key_full(stage_of<Shape>(tile)), parity_of<Shape>(tile));
  }
  __device__ __forceinline__ void wait_for_values(uint32_t tile) const {
    ptx::mbarrier_wait(barriers.value_full(stage_of<Shape>(tile)), parity_of<Shape>(tile));
  }
  __device__ __forceinline__ void release_keys(uint32_t tile) const {
    release(barriers.key_empty(stage_of<Shape>(tile)));
  }
  __device__ __forceinline__ void release_values(uint32_t tile) const {
    release(barriers.value_empty(stage_of<Shape>(tile)));
  }
  __device__ __forceinline__ unsigned char* value_tile(uint32_t tile) const {
    return shared + Shape::kValueAt + stage_of<Shape>(tile) * Shape::kTileBytes;
  }
  __device__ __forceinline__ int kv_head() const { return work->head / (call.heads / call.kv_heads); }

  // scores = queries keys^T, for the 64 rows of the group.
  __device__ __forceinline__ void start_scores(float (&scores)[Blocks][4], uint32_t tile) const {
    constexpr int Row = Shape::kRowBytes, PanelSteps = Row / 32;
    const uint64_t queries = ptx::matrix_descriptor(shared + Shape::kQueryAt + group * Shape::kQueryBytes, 16,
                                                    8 * Row, kSwizzleOf<Row>);
    const uint64_t keys = ptx::matrix_descriptor(
        shared + Shape::kKeyAt + stage_of<Shape>(tile) * Shape::kTileBytes, 16, 8 * Row, kSwizzleOf<Row>);
    ptx::hold_registers(scores);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < D * int(sizeof(T)) / 32; k++)
      ptx::wgmma<T, BlockN, false>(
          scores, ptx::advanced(queries, k / PanelSteps * Shape::kQueryPanelBytes + k % PanelSteps * 32),
          ptx::advanced(keys, k / PanelSteps * Shape::kPanelBytes + k % PanelSteps * 32), k > 0);
    ptx::wgmma_commit();
  }
  // output += probabilities values
  __device__ __forceinline__ void start_output(float (&output)[D / 8][4], uint32_t (&probabilities)[Steps][4],
                                               uint32_t tile) const {
    constexpr int Row = Shape::kTransposes ? Shape::kPanelKeys : Shape::kRowBytes, PanelSteps = Row / 32;
    // 16 bits: a k step of 16 keys is 16 rows. Transposed: it is 32 bytes of each row.
    const uint64_t values = ptx::matrix_descriptor(
        value_tile(tile), Shape::kTransposes ? 16 : Shape::kPanelBytes, 8 * Row, kSwizzleOf<Row>);
    ptx::hold_registers(output);
    ptx::hold_registers(probabilities);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < Steps; k++) {
      const int at =
          Shape::kTransposes ? k / PanelSteps * Shape::kKeyPanelBytes + k % PanelSteps * 32 : k * 16 * Row;
      ptx::wgmma<T, D, !Shape::kTransposes>(output, probabilities[k], ptx::advanced(values, at), true);
    }
    ptx::wgmma_commit();
  }
  // The accumulators of the scores are, rounded, fragments of the second product: of 16 keys, or of 32 in the
  // order that values are transposed to.
  __device__ __forceinline__ void pack_probabilities(uint32_t (&probabilities)[Steps][4],
                                                     const float (&scores)[Blocks][4]) const {
#pragma unroll
    for (int k = 0; k < Steps; k++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int h = i % 2 * 2;  // the row's elements
        if constexpr (Shape::kTransposes) {
          const auto &x = scores[4 * k + i / 2 * 2], &y = scores[4 * k + i / 2 * 2 + 1];
          probabilities[k][i] = pack_e4m3(x[h], x[h + 1], y[h], y[h + 1]);
        } else {
          probabilities[k][i] = pack<T>(scores[2 * k + i / 2][h], scores[2 * k + i / 2][h + 1]);
        }
      }
  }

  // Factor of the dot products, with what dequantizes them.
  __device__ __forceinline__ float score_scale() const {
    float scale = call.mask.scale;
    if constexpr (sizeof(T) == 1) {
      if (call.query_scale != nullptr) scale *= call.query_scale[work->head];
      if (call.key_scale != nullptr) scale *= call.key_scale[kv_head()];
      scale = fmaxf(scale, 1e-30f);  // of tensors that are all zero: -inf must stay -inf
    }
    return scale;
  }
  // Softcap, ALiBi, bias and mask, on the scores of key tile n.
  __device__ __forceinline__ void finish_scores(float (&scores)[Blocks][4], const ScoreMap& map,
                                                int n) const {
    const int id = ptx::opaque(thread), lane = id % 32;
    const int length = work->length, keys = work->keys, warp_row = work->row + id / 32 * 16,
              shift = keys - length;
    const int n0 = n * BlockN, key = n0 + lane % 4 * 2, row = warp_row + lane / 4;
    if (Shape::kMapsScores && map.changes) {
      scale_scores(scores, map);
      const float slope =
          call.mask.alibi_slopes != nullptr ? call.mask.alibi_slopes[work->head] * kLog2e : 0.f;
      const int64_t bias = work->sequence * call.bias_batch + work->head * call.bias_head;
      const int bias_rows = min(length, call.max_q), bias_keys = min(keys, call.max_k);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int at = row + 8 * h;
        if (call.mask.alibi_slopes != nullptr) add_alibi(scores, h, slope, at + shift, key);
        if (call.bias == nullptr || at >= bias_rows) continue;
        if (call.bias_is_float32)
          add_bias(scores, h, static_cast<const float*>(call.bias) + bias + at * call.bias_query, key,
                   bias_keys);
        else
          add_bias(scores, h, static_cast<const Out*>(call.bias) + bias + at * call.bias_query, key,
                   bias_keys);
      }
    }
    const KeyRange common = common_keys(call.mask, warp_row + shift, warp_row + 15 + shift, keys);
    if (n0 < common.begin || n0 + BlockN > common.end) {
#pragma unroll
      for (int h = 0; h < 2; h++)
        hide_scores(scores, h, visible_keys(call.mask, row + 8 * h + shift, keys), key);
    }
  }

  // Rows of the value tile from `first` on belong to another sequence, or to none. All consumers call it.
  __device__ __forceinline__ void zero_values(uint32_t tile, int first) const {
    const int chunks = (BlockN - first) * 8;  // of 16 bytes, in a panel
    for (int i = group * 128 + ptx::opaque(thread); i < chunks * Shape::kPanels; i += Shape::kConsumerThreads)
      *reinterpret_cast<uint4*>(value_tile(tile) + i / chunks * Shape::kPanelBytes + first * 128 +
                                i % chunks * 16) = {0, 0, 0, 0};
    ptx::fence_proxy_async();
    ptx::named_barrier_wait(kAllConsumers, Shape::kConsumerThreads);
  }

  // The tile's rows of output and log_sum_exp. After it, the queries and `work` may be overwritten.
  __device__ __forceinline__ void store(const float (&output)[D / 8][4], const Softmax& softmax) const {
    const int id = ptx::opaque(thread), lane = id % 32, warp = id / 32;
    const int rows = work->length - work->row - warp * 16;  // of this warp; may be none
    const int64_t token = work->begin + work->row + warp * 16,
                  row_stride = int64_t(call.heads) * call.value_dim;
    float sink = -INFINITY;
    if (call.head_sink != nullptr && work->sequence < call.batch)
      sink = call.sink_is_float32 ? static_cast<const float*>(call.head_sink)[work->head]
                                  : to_float(static_cast<const Out*>(call.head_sink)[work->head]);
    float factors[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const RowEnd end = softmax.finish(h, sink);
      const int row = lane / 4 + 8 * h;
      if (call.log_sum_exp != nullptr && row < rows && lane % 4 == 0)
        call.log_sum_exp[int64_t(work->head) * call.tokens_q + token + row] = end.log_sum_exp;
      factors[h] = end.inverse;
      if (sizeof(T) == 1 && call.value_scale != nullptr) factors[h] *= call.value_scale[kv_head()];
    }
    Out* const out = static_cast<Out*>(call.output) + token * row_stride + work->head * call.value_dim;
    if constexpr (Shape::kTransposes) {
      store_parted<Shape>(out, row_stride, call.value_dim, rows, output, factors, lane);
    } else {
      ptx::named_barrier_wait(kOwnGroup + group, 128);  // all warps are through with the queries
      unsigned char* const staged = shared + Shape::kQueryAt + group * Shape::kQueryBytes + warp * 16 * 128;
      store_staged<Shape>(out, row_stride, call.value_dim, rows, output, factors, staged, lane);
      ptx::fence_proxy_async();
    }
    release(barriers.query_empty(group));
  }

  __device__ __forceinline__ void attend() {
    float output[D / 8][4];
#pragma unroll
    for (int d = 0; d < D / 8; d++) output[d][0] = output[d][1] = output[d][2] = output[d][3] = 0.f;
    Softmax softmax;
    const int first_tile = work->first_tile;
    if (first_tile < work->end_tile) {
      const ScoreMap map(call.mask, score_scale(), call.bias != nullptr);
      float scores[Blocks][4], alpha[2];
      uint32_t probabilities[Steps][4];

      int n = work->end_tile - 1;
      wait_for_keys(count);
      start_scores(scores, count);
      ptx::wgmma_wait<0>();
      ptx::hold_registers(scores);
      release_keys(count);
      finish_scores(scores, map, n);
      softmax.update(scores, map.factor, alpha);
      pack_probabilities(probabilities, scores);
      wait_for_values(count);
      if (!Shape::kTransposes && (n + 1) * BlockN > work->keys) zero_values(count, work->keys - n * BlockN);

      for (; --n >= first_tile; count++) {
        wait_for_keys(count + 1);
        wait_for_turn();
        start_scores(scores, count + 1);
        wait_for_values(count);
        start_output(output, probabilities, count);
        pass_turn();
        ptx::wgmma_wait<1>();
        ptx::hold_registers(scores);
        release_keys(count + 1);
        finish_scores(scores, map, n);
        softmax.update(scores, map.factor, alpha);
        ptx::wgmma_wait<0>();
        ptx::hold_registers(output);
        ptx::hold_registers(probabilities);
        release_values(count);
#pragma unroll
        for (int d = 0; d < D / 8; d++) {
          output[d][0] *= alpha[0], output[d][1] *= alpha[0];
          output[d][2] *= alpha[1], output[d][3] *= alpha[1];
        }
        pack_probabilities(probabilities, scores);
      }
      wait_for_values(count);
      start_output(output, probabilities, count);
      ptx::wgmma_wait<0>();
      ptx::hold_registers(output);
      ptx::hold_registers(probabilities);
      release_values(count++);
    }
    store(output, softmax);
  }

  __device__ __forceinline__ void run() {
    work = reinterpret_cast<const Sm90Work*>(shared + Shape::kWorkAt) + group;
    if (Shape::kTakesTurns && group == Shape::kConsumers - 1)
      ptx::named_barrier_arrive(kTurn, 256);  // the first turn
    for (uint32_t parity = 0;; parity ^= 1) {
      ptx::mbarrier_wait(barriers.query_full(group), parity);
      if (work->sequence < 0) break;
      attend();
    }
    if (group == 0) wait_for_turn();  // the last turn, which nobody takes
  }
};

}  // namespace slipway
