// What the warps of flash_attention's form for sm_90a agree on: tiles, where they lie in shared memory, the
// barriers that guard them, and the order of the work.
#pragma once
#include "slipway/flash_attention_params.cuh"
#include "slipway/numeric.cuh"
#include "slipway/ptx_wgmma.cuh"
#include "slipway/query_tiles.cuh"
#include "slipway/work_order.cuh"

namespace slipway {

struct FlashAttentionSm90Params {
  // [tokens, heads, size] as axes size, heads, tokens; boxes of kPanelColumns columns, 1 head, 64 rows
  // (query) or kBlockN rows.
  ptx::TensorMap query_map, key_map, value_map;
  FlashAttentionParams call;
  WorkOrder order;  // tiles of kBlockM rows
};

// MapsScores: takes softcap, ALiBi and bias too, which need registers.
template <class T_, class Out_, int D_, int Consumers_, int BlockN_, bool MapsScores_>
struct FlashAttentionSm90Shape {
  using T = T_;      // of query, key and value: __half, __nv_bfloat16 or e4m3
  using Out = Out_;  // of the output; T where that has 16 bits
  static constexpr bool kMapsScores = MapsScores_;
  static constexpr int kHeadSize = D_, kConsumers = Consumers_, kBlockN = BlockN_;
  static constexpr int kGroupRows = 64, kBlockM = kGroupRows * kConsumers, kStages = 2;
  static constexpr int kConsumerThreads = 128 * kConsumers, kThreads = 128 + kConsumerThreads;
  // Registers of the warpgroups: together those that kThreads threads start with.
  static constexpr int kProducerRegisters = kConsumers == 3 ? 32 : 40,
                       kConsumerRegisters = kConsumers == 3 ? 160 : 232;
  // Heads of 256 have too little softmax for taking turns to pay.
  static constexpr bool kTakesTurns = kHeadSize <= 128;
  // wgmma takes operands of 8 bits K-major only, and for the second product k is the key: tiles of values,
  // which have a row a key, are transposed by the warps of the producer's warpgroup that have nothing else to
  // do.
  static constexpr bool kTransposes = sizeof(T) == 1;
  static constexpr int kTransposers = 3;
  // E4M3 goes down to 2^-9 only: probabilities, at most 1, are raised by 2^8, which still fits below its 448.
  static constexpr int kShift = sizeof(T) == 1 ? 8 : 0;
  static constexpr int kStepKeys = 32 / int(sizeof(T));  // of a k step of the second product

  // Tiles consist of panels, 128 bytes of all rows (or 64, where a row has no more), swizzled as wide; panels
  // begin at multiples of 1024 bytes.
  static constexpr int kRowBytes = kHeadSize * int(sizeof(T)) < 128 ? 64 : 128;
  static constexpr int kPanelColumns = kRowBytes / int(sizeof(T)), kPanels = kHeadSize / kPanelColumns;
  static constexpr int kQueryPanelBytes = kGroupRows * kRowBytes, kPanelBytes = kBlockN * kRowBytes;
  static constexpr int kQueryBytes = kPanels * kQueryPanelBytes, kTileBytes = kPanels * kPanelBytes;
  // Transposed values: kHeadSize rows of kBlockN keys, in panels of so many keys.
  static constexpr int kPanelKeys = kBlockN % 128 == 0  ? 128
                                    : kBlockN % 64 == 0 ? 64
                                                        : 32,
                       kKeyPanelBytes = kHeadSize * kPanelKeys;
  static_assert(!kTransposes || kBlockN % kPanelKeys == 0, "tiles of values are transposed in whole panels");

  // Shared memory, in bytes from its beginning. 16-bit queries make room for the output. kLoadedAt: values as
  // they were loaded, where they have yet to be transposed.
  static constexpr int kQueryAt = 0, kKeyAt = kQueryAt + kConsumers * kQueryBytes;
  static constexpr int kValueAt = kKeyAt + kStages * kTileBytes, kLoadedAt = kValueAt + kStages * kTileBytes;
  static constexpr int kBarriersAt = kLoadedAt + (kTransposes ? kStages * kTileBytes : 0);
  static constexpr int kBarriers = 2 * kConsumers + (kTransposes ? 6 : 4) * kStages,
                       kWorkAt = kBarriersAt + (kBarriers + 1) / 2 * 16;
  static constexpr int kLoadedKeysAt = kWorkAt + kConsumers * 32;  // int [kStages]: see the producer
  static constexpr size_t kSharedBytes = kLoadedKeysAt + (kTransposes ? 16 : 0);
};

// The swizzle of rows of so many bytes.
template <int RowBytes>
constexpr ptx::Swizzle kSwizzleOf = RowBytes == 128  ? ptx::Swizzle::k128
                                    : RowBytes == 64 ? ptx::Swizzle::k64
                                                     : ptx::Swizzle::k32;

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
  // Values as consumers read them, transposed if they must be.
  __device__ __forceinline__ uint64_t* value_full(int stage) const {
    return key_full(2 * Shape::kStages + stage);
  }
  __device__ __forceinline__ uint64_t* value_empty(int stage) const {
    return key_full(3 * Shape::kStages + stage);
  }
  // Values that have yet to be transposed.
  __device__ __forceinline__ uint64_t* loaded_full(int stage) const {
    return key_full(4 * Shape::kStages + stage);
  }
  __device__ __forceinline__ uint64_t* loaded_empty(int stage) const {
    return key_full(5 * Shape::kStages + stage);
  }

  __device__ __forceinline__ void initialise() const {
    constexpr int warps = 4 * Shape::kConsumers;  // one lane of each arrives
    for (int g = 0; g < Shape::kConsumers; g++)
      ptx::mbarrier_init(query_full(g), 1), ptx::mbarrier_init(query_empty(g), 4);
    for (int s = 0; s < Shape::kStages; s++) {
      ptx::mbarrier_init(key_full(s), 1), ptx::mbarrier_init(key_empty(s), warps);
      ptx::mbarrier_init(value_full(s), Shape::kTransposes ? Shape::kTransposers : 1);
      ptx::mbarrier_init(value_empty(s), warps);
      if (!Shape::kTransposes) continue;
      ptx::mbarrier_init(loaded_full(s), 1), ptx::mbarrier_init(loaded_empty(s), Shape::kTransposers);
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
  int first_tile, end_tile;  // key tiles to visit, from the last one back
};

// A tile of query rows of one head, and the keys that it visits.
struct Sm90Item {
  QueryTile tile;
  int head, kv_head;
  int key_begin, keys;       // of the sequence
  int first_tile, end_tile;  // key tiles that any of the rows sees
};

// Calls visit(item) for everything that this block does, in order. All lanes of the warp call it.
template <class Shape, class Visit>
__device__ __forceinline__ void visit_items(const FlashAttentionSm90Params& p, Visit visit) {
  constexpr int BlockM = Shape::kBlockM, BlockN = Shape::kBlockN;
  const FlashAttentionParams& call = p.call;
  for (int round = 0;; round++) {
    const WorkItem work = work_item(p.order, round);
    if (work.tile < 0) break;
    if (work.head >= call.heads) continue;
    const QueryTile tile = find_query_tile(call.cu_seqlens_q, call.batch, call.tokens_q, BlockM, work.tile);
    if (tile.first < 0) continue;
    const bool is_sequence = tile.sequence < call.batch;
    const int key_begin = is_sequence ? call.cu_seqlens_k[tile.sequence] : 0;
    const int keys = is_sequence ? call.cu_seqlens_k[tile.sequence + 1] - key_begin : 0;
    const int shift = keys - tile.length;  // row i has position i + shift
    const int last = min(tile.first + BlockM, tile.length) - 1;
    const KeyRange visited = visited_keys(call.mask, tile.first + shift, last + shift, keys);
    const int first_tile = visited.begin / BlockN;
    const int end_tile = visited.begin < visited.end ? (visited.end + BlockN - 1) / BlockN : first_tile;
    visit(Sm90Item{tile, work.head, work.head / (call.heads / call.kv_heads), key_begin, keys, first_tile,
                   end_tile});
  }
}

}  // namespace slipway
