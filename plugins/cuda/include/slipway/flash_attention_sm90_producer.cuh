// The producer of flash_attention's form for sm_90a: one warp that brings tiles of queries, keys and values
// to shared memory by TMA, and tells the consumers what they are.
#pragma once
#include "slipway/flash_attention_sm90_shape.cuh"

namespace slipway {

template <class Shape>
__device__ __forceinline__ void flash_attention_produce(const FlashAttentionSm90Params& p,
                                                        unsigned char* shared,
                                                        const Sm90Barriers<Shape>& barriers) {
  constexpr int BlockN = Shape::kBlockN;
  Sm90Work* const slots = reinterpret_cast<Sm90Work*>(shared + Shape::kWorkAt);
  // What is told to those who transpose: how many of a tile's keys are the sequence's; -1: there are no more
  // tiles.
  int* const loaded_keys = reinterpret_cast<int*>(shared + Shape::kLoadedKeysAt);
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
  auto load_values = [&](uint32_t tile, int head, int row, int keys) {
    constexpr int at = Shape::kTransposes ? Shape::kLoadedAt : Shape::kValueAt;
    const uint32_t stage = stage_of<Shape>(tile);
    uint64_t* const empty = Shape::kTransposes ? barriers.loaded_empty(stage) : barriers.value_empty(stage);
    uint64_t* const full = Shape::kTransposes ? barriers.loaded_full(stage) : barriers.value_full(stage);
    ptx::mbarrier_wait(empty, parity_of<Shape>(tile) ^ 1);
    if (Shape::kTransposes) loaded_keys[stage] = keys;
    load_tile(p.value_map, shared + at + stage * Shape::kTileBytes, full, head, row);
  };

  visit_items<Shape>(p, [&](const Sm90Item& item) {
    if (leads) {
      const QueryTile& tile = item.tile;
      const int first_tile = item.first_tile, end_tile = item.end_tile, kv_head = item.kv_head;
      const bool any = first_tile < end_tile;

      if (any) load_keys(count, kv_head, item.key_begin + (end_tile - 1) * BlockN);
#pragma unroll 1
      for (int g = 0; g < Shape::kConsumers; g++) {
        ptx::mbarrier_wait(barriers.query_empty(g), query_parity);
        const int row = tile.first + g * Shape::kGroupRows;
        slots[g] = {tile.sequence, tile.begin, tile.length, row, item.head, item.keys, first_tile, end_tile};
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
        if (n > first_tile) load_keys(count + 1, kv_head, item.key_begin + (n - 1) * BlockN);
        load_values(count, kv_head, item.key_begin + n * BlockN, min(item.keys - n * BlockN, BlockN));
      }
    }
    __syncwarp();
  });
  if (!leads) return;
#pragma unroll 1
  for (int g = 0; g < Shape::kConsumers; g++) {
    ptx::mbarrier_wait(barriers.query_empty(g), query_parity);
    slots[g].sequence = -1;
    ptx::mbarrier_arrive(barriers.query_full(g));
  }
  if constexpr (Shape::kTransposes) {
    const uint32_t stage = stage_of<Shape>(count);
    ptx::mbarrier_wait(barriers.loaded_empty(stage), parity_of<Shape>(count) ^ 1);
    loaded_keys[stage] = -1;
    ptx::mbarrier_arrive(barriers.loaded_full(stage));
  }
}

}  // namespace slipway
