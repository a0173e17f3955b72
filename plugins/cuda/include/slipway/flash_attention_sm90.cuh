// Packed variable-length attention on sm_90a, after FlashAttention-3 (Shah et al., arXiv 2407.08608).
//
// A block is persistent. One warp of its first warpgroup, the producer, brings tiles of queries, keys and
// values to shared memory by TMA; the other warpgroups, the consumers, compute 64 query rows each by wgmma.
// Two things overlap:
//   * within a consumer, the scores of the next key tile are computed while the values of this one are added
//   up, and
//     the softmax of the next runs beside the latter;
//   * between consumers, turns are taken (named barriers): while one has its softmax, another has the tensor
//   cores.
// Key tiles are visited from the last one back, so that the tile that needs a mask for the sequence's end
// comes first.
//
// Tensor maps cover the packed arrays: the last tile of a sequence holds rows of the next one too. Their
// scores are hidden, but a probability of 0 times a value that is no number is none: those rows of the value
// tile are zeroed.
#pragma once
#include "slipway/flash_attention_params.cuh"
#include "slipway/numeric.cuh"
#include "slipway/ptx_wgmma.cuh"
#include "slipway/query_tiles.cuh"
#include "slipway/scores.cuh"
#include "slipway/softmax.cuh"
#include "slipway/work_order.cuh"

namespace slipway {

struct FlashAttentionSm90Params {
  // [tokens, heads, size] as axes size, heads, tokens; boxes of 128 bytes, 1 head, 64 rows (query) or kBlockN
  // rows.
  ptx::TensorMap query_map, key_map, value_map;
  FlashAttentionParams call;
  WorkOrder order;  // tiles of kBlockM rows
};

// MapsScores: takes softcap, ALiBi and bias too, which need registers.
template <class T_, int D_, int Consumers_, int BlockN_, bool MapsScores_>
struct FlashAttentionSm90Shape {
  using T = T_;  // of query, key, value and output
  static constexpr bool kMapsScores = MapsScores_;
  static constexpr int kHeadSize = D_, kConsumers = Consumers_, kBlockN = BlockN_;
  static constexpr int kGroupRows = 64, kBlockM = kGroupRows * kConsumers, kStages = 2;
  static constexpr int kConsumerThreads = 128 * kConsumers, kThreads = 128 + kConsumerThreads;
  // Registers of the warpgroups: together those that kThreads threads start with.
  static constexpr int kProducerRegisters = kConsumers == 3 ? 32 : 40,
                       kConsumerRegisters = kConsumers == 3 ? 160 : 232;
  // Heads of 256 have too little softmax for taking turns to pay.
  static constexpr bool kTakesTurns = kHeadSize <= 128;

  // Tiles consist of panels, 128 bytes of all rows; panels begin at multiples of 1024 bytes.
  static constexpr int kPanelColumns = 128 / int(sizeof(T)), kPanels = kHeadSize / kPanelColumns;
  static constexpr int kQueryPanelBytes = kGroupRows * 128, kPanelBytes = kBlockN * 128;
  static constexpr int kQueryBytes = kPanels * kQueryPanelBytes, kTileBytes = kPanels * kPanelBytes;

  // Shared memory, in bytes from its beginning. A consumer's queries make room for its output.
  static constexpr int kQueryAt = 0, kKeyAt = kQueryAt + kConsumers * kQueryBytes;
  static constexpr int kValueAt = kKeyAt + kStages * kTileBytes,
                       kBarriersAt = kValueAt + kStages * kTileBytes;
  static constexpr int kBarriers = 2 * kConsumers + 4 * kStages,
                       kWorkAt = kBarriersAt + (kBarriers + 1) / 2 * 16;
  static constexpr size_t kSharedBytes = kWorkAt + kConsumers * 32;
};

// The barriers in shared memory: a tile is there (full), its place may be overwritten (empty).
template <class Shape>
struct Sm90Barriers {
  uint64_t* first;
  __device__ __forceinline__ uint64_t* query_full(int group) const { return first + group; }
  __device__ __forceinline__ uint64_t* query_empty(int group) const {
    return first + Shape::kConsumers + group;
  }
  __device__ __forceinline__ uint64_t* key_full(int stage) const {
    return first + 2 * Shape::kConsumers + stage;
  }
  __device__ __forceinline__ uint64_t* key_empty(int stage) const { return key_full(Shape::kStages + stage); }
  __device__ __forceinline__ uint64_t* value_full(int stage) const {
    return key_full(2 * Shape::kStages + stage);
  }
  __device__ __forceinline__ uint64_t* value_empty(int stage) const {
    return key_full(3 * Shape::kStages + stage);
  }

  __device__ __forceinline__ void initialise() const {
    constexpr int warps = 4 * Shape::kConsumers;  // one lane of each arrives
    for (int g = 0; g < Shape::kConsumers; g++)
      ptx::mbarrier_init(query_full(g), 1), ptx::mbarrier_init(query_empty(g), 4);
    for (int s = 0; s < Shape::kStages; s++) {
      ptx::mbarrier_init(key_full(s), 1), ptx::mbarrier_init(key_empty(s), warps);
      ptx::mbarrier_init(value_full(s), 1), ptx::mbarrier_init(value_empty(s), warps);
    }
    ptx::mbarrier_fence_init();
  }
};

// Stages are taken in turn: tile number `count` has this one, and completes the phase of this parity on its
// barriers.
template <class Shape>
__device__ __forceinline__ uint32_t stage_of(uint32_t count) {
  return count % Shape::kStages;
}
template <class Shape>
__device__ __forceinline__ uint32_t parity_of(uint32_t count) {
  return count / Shape::kStages & 1;
}

// What the producer tells a consumer of its next tile; 32 bytes in shared memory.
struct alignas(16) Sm90Work {
  int sequence;       // -1: there are no more
  int begin, length;  // the sequence's rows of query
  int row;            // the consumer's first, within the sequence; it may have none
  int head;
  int keys;                  // of the sequence
  int first_tile, end_tile;  // key tiles to visit
};

// ---- the producer: one warp

template <class Shape>
__device__ __forceinline__ void flash_attention_produce(const FlashAttentionSm90Params& p,
                                                        unsigned char* shared,
                                                        const Sm90Barriers<Shape>& barriers) {
  constexpr int BlockM = Shape::kBlockM, BlockN = Shape::kBlockN;
  const FlashAttentionParams& call = p.call;
  Sm90Work* const slots = reinterpret_cast<Sm90Work*>(shared + Shape::kWorkAt);
  const bool leads = ptx::elect_one();
  uint32_t count = 0;         // of key and value tiles of the items before
  uint32_t query_parity = 1;  // of the empty barriers, one phase behind

  auto load_tile = [&](const ptx::TensorMap& map, unsigned char* tile, uint64_t* full, int head, int row) {
    ptx::mbarrier_arrive_expect(full, Shape::kTileBytes);
#pragma unroll
    for (int panel = 0; panel < Shape::kPanels; panel++)
      ptx::tensor_load(tile + panel * Shape::kPanelBytes, &map, full, panel * Shape::kPanelColumns, head,
                       row);
  };
  auto load_keys = [&](uint32_t tile, int head, int row) {
    const uint32_t stage = stage_of<Shape>(tile);
    ptx::mbarrier_wait(barriers.key_empty(stage), parity_of<Shape>(tile) ^ 1);
    load_tile(p.key_map, shared + Shape::kKeyAt + stage * Shape::kTileBytes, barriers.key_full(stage), head,
              row);
  };
  auto load_values = [&](uint32_t tile, int head, int row) {
    const uint32_t stage = stage_of<Shape>(tile);
    ptx::mbarrier_wait(barriers.value_empty(stage), parity_of<Shape>(tile) ^ 1);
    load_tile(p.value_map, shared + Shape::kValueAt + stage * Shape::kTileBytes, barriers.value_full(stage),
              head, row);
  };

  for (int round = 0;; round++) {
    const WorkItem item = work_item(p.order, round);
    if (item.tile < 0) break;
    if (item.head >= call.heads) continue;
    const QueryTile tile = find_query_tile(call.cu_seqlens_q, call.batch, call.tokens_q, BlockM, item.tile);
    if (tile.first < 0) continue;
    if (leads) {
      const bool is_sequence = tile.sequence < call.batch;
      const int key_begin = is_sequence ? call.cu_seqlens_k[tile.sequence] : 0;
      const int keys = is_sequence ? call.cu_seqlens_k[tile.sequence + 1] - key_begin : 0;
      const int shift = keys - tile.length;  // row i has position i + shift
      const int last = min(tile.first + BlockM, tile.length) - 1;
      const KeyRange visited = visited_keys(call.mask, tile.first + shift, last + shift, keys);
      const int first_tile = visited.begin / BlockN;
      const int end_tile = visited.begin < visited.end ? (visited.end + BlockN - 1) / BlockN : first_tile;
      const int kv_head = item.head / (call.heads / call.kv_heads);
      const bool any = first_tile < end_tile;

      if (any) load_keys(count, kv_head, key_begin + (end_tile - 1) * BlockN);
#pragma unroll 1
      for (int g = 0; g < Shape::kConsumers; g++) {
        ptx::mbarrier_wait(barriers.query_empty(g), query_parity);
        const int row = tile.first + g * Shape::kGroupRows;
        slots[g] = {tile.sequence, tile.begin, tile.length, row, item.head, keys, first_tile, end_tile};
        if (!any) {
          ptx::mbarrier_arrive(barriers.query_full(g));
          continue;
        }
        unsigned char* const queries = shared + Shape::kQueryAt + g * Shape::kQueryBytes;
        ptx::mbarrier_arrive_expect(barriers.query_full(g), Shape::kQueryBytes);
#pragma unroll
        for (int panel = 0; panel < Shape::kPanels; panel++)
          ptx::tensor_load(queries + panel * Shape::kQueryPanelBytes, &p.query_map, barriers.query_full(g),
                           panel * Shape::kPanelColumns, item.head, tile.begin + row);
      }
      query_parity ^= 1;
      for (int n = end_tile - 1; n >= first_tile; n--, count++) {
        if (n > first_tile) load_keys(count + 1, kv_head, key_begin + (n - 1) * BlockN);
        load_values(count, kv_head, key_begin + n * BlockN);
      }
    }
    __syncwarp();
  }
  if (leads)
#pragma unroll 1
    for (int g = 0; g < Shape::kConsumers; g++) {
      ptx::mbarrier_wait(barriers.query_empty(g), query_parity);
      slots[g].sequence = -1;
      ptx::mbarrier_arrive(barriers.query_full(g));
    }
}

// ---- a consumer: one warpgroup, 64 query rows

enum Sm90NamedBarrier { kTurn = 1, kAllConsumers = 4, kOwnGroup = 5 };  // kTurn and kOwnGroup: one a consumer

template <class Shape>
struct Sm90Consumer {
  using T = typename Shape::T;
  static constexpr int D = Shape::kHeadSize, BlockN = Shape::kBlockN, Blocks = BlockN / 8;

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

  // scores = queries keys^T, for the 64 rows of the group.
  __device__ __forceinline__ void start_scores(float (&scores)[Blocks][4], uint32_t tile) const {
    const uint64_t queries = ptx::matrix_descriptor(shared + Shape::kQueryAt + group * Shape::kQueryBytes, 16,
                                                    1024, ptx::Swizzle::k128);
    const uint64_t keys = ptx::matrix_descriptor(
        shared + Shape::kKeyAt + stage_of<Shape>(tile) * Shape::kTileBytes, 16, 1024, ptx::Swizzle::k128);
    ptx::hold_registers(scores);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < D * int(sizeof(T)) / 32; k++)
      ptx::wgmma<T, BlockN, false>(scores,
                                   ptx::advanced(queries, k / 4 * Shape::kQueryPanelBytes + k % 4 * 32),
                                   ptx::advanced(keys, k / 4 * Shape::kPanelBytes + k % 4 * 32), k > 0);
    ptx::wgmma_commit();
  }
  // output += probabilities values
  __device__ __forceinline__ void start_output(float (&output)[D / 8][4],
                                               uint32_t (&probabilities)[BlockN / 16][4],
                                               uint32_t tile) const {
    const uint64_t values =
        ptx::matrix_descriptor(value_tile(tile), Shape::kPanelBytes, 1024, ptx::Swizzle::k128);
    ptx::hold_registers(output);
    ptx::hold_registers(probabilities);
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < BlockN / 16; k++)
      ptx::wgmma<T, D, true>(output, probabilities[k], ptx::advanced(values, k * 2048), true);
    ptx::wgmma_commit();
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
          add_bias(scores, h, static_cast<const T*>(call.bias) + bias + at * call.bias_query, key, bias_keys);
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

  // The tile's rows of output and log_sum_exp, by way of the memory of its queries.
  __device__ __forceinline__ void store(const float (&output)[D / 8][4],
                                        const OnlineSoftmax<>& softmax) const {
    const int id = ptx::opaque(thread), lane = id % 32, warp = id / 32;
    const int rows = work->length - work->row - warp * 16;  // of this warp; may be none
    const int64_t token = work->begin + work->row + warp * 16;
    float sink = -INFINITY;
    if (call.head_sink != nullptr && work->sequence < call.batch)
      sink = call.sink_is_float32 ? static_cast<const float*>(call.head_sink)[work->head]
                                  : to_float(static_cast<const T*>(call.head_sink)[work->head]);
    unsigned char* const staged = shared + Shape::kQueryAt + group * Shape::kQueryBytes + warp * 16 * 128;
    ptx::named_barrier_wait(kOwnGroup + group, 128);  // all warps are through with the queries
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const RowEnd end = softmax.finish(h, sink);
      const int row = lane / 4 + 8 * h;
      if (call.log_sum_exp != nullptr && row < rows && lane % 4 == 0)
        call.log_sum_exp[int64_t(work->head) * call.tokens_q + token + row] = end.log_sum_exp;
#pragma unroll
      for (int d = 0; d < D / 8; d++) {  // chunks of a row are permuted by its number
        const int at = d / 8 * Shape::kQueryPanelBytes + row * 128 + (d % 8 ^ (row & 7)) * 16 + lane % 4 * 4;
        *reinterpret_cast<uint32_t*>(staged + at) =
            pack<T>(output[d][2 * h] * end.inverse, output[d][2 * h + 1] * end.inverse);
      }
    }
    __syncwarp();
    T* const out = static_cast<T*>(call.output) + (token * call.heads + work->head) * call.value_dim;
#pragma unroll
    for (int i = 0; i < D / 16; i++) {  // four rows of a panel a step
      const int panel = i / 4, row = i % 4 * 4 + lane / 8, chunk = lane % 8, column = panel * 64 + chunk * 8;
      const uint4 x = *reinterpret_cast<const uint4*>(staged + panel * Shape::kQueryPanelBytes + row * 128 +
                                                      (chunk ^ (row & 7)) * 16);
      if (row < rows && column < call.value_dim)
        *reinterpret_cast<uint4*>(out + int64_t(row) * call.heads * call.value_dim + column) = x;
    }
    ptx::fence_proxy_async();
    release(barriers.query_empty(group));
  }

  __device__ __forceinline__ void attend() {
    float output[D / 8][4];
#pragma unroll
    for (int d = 0; d < D / 8; d++) output[d][0] = output[d][1] = output[d][2] = output[d][3] = 0.f;
    OnlineSoftmax<> softmax;
    const int first_tile = work->first_tile;
    if (first_tile < work->end_tile) {
      const ScoreMap map(call.mask, call.mask.scale, call.bias != nullptr);
      float scores[Blocks][4], alpha[2];
      uint32_t probabilities[BlockN / 16][4];
      auto pack_probabilities = [&] {
#pragma unroll
        for (int k = 0; k < BlockN / 16; k++)
#pragma unroll
          for (int i = 0; i < 4; i++)
            probabilities[k][i] =
                pack<T>(scores[2 * k + i / 2][i % 2 * 2], scores[2 * k + i / 2][i % 2 * 2 + 1]);
      };

      int n = work->end_tile - 1;
      wait_for_keys(count);
      start_scores(scores, count);
      ptx::wgmma_wait<0>();
      ptx::hold_registers(scores);
      release_keys(count);
      finish_scores(scores, map, n);
      softmax.update(scores, map.factor, alpha);
      pack_probabilities();
      wait_for_values(count);
      if ((n + 1) * BlockN > work->keys) zero_values(count, work->keys - n * BlockN);

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
        pack_probabilities();
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

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    flash_attention_sm90_kernel(const __grid_constant__ FlashAttentionSm90Params p) {
  DYNAMIC_SMEM(shared);
  const Sm90Barriers<Shape> barriers = {reinterpret_cast<uint64_t*>(shared + Shape::kBarriersAt)};
  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&p.query_map);
    ptx::prefetch_tensor_map(&p.key_map);
    ptx::prefetch_tensor_map(&p.value_map);
    barriers.initialise();
  }
  __syncthreads();
  // The same in all lanes of a warp, and the compiler knows it.
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0);
  if (warp < 4) {
    ptx::registers_decrease<Shape::kProducerRegisters>();
    if (warp == 0) flash_attention_produce<Shape>(p, shared, barriers);
  } else {
    ptx::registers_increase<Shape::kConsumerRegisters>();
    Sm90Consumer<Shape> consumer = {p.call,  shared, barriers, warp / 4 - 1, int(threadIdx.x) % 128,
                                    nullptr, 0};
    consumer.run();
  }
}

}  // namespace slipway
