// In which order the blocks of a persistent grid take tiles of query rows: the order is fixed, so no counter
// in memory is needed, and a launch can be replayed.
#pragma once
#include "slipway/ptx.cuh"

namespace slipway {

// Items are (tile, head). `heads_at_once` heads go through all their tiles before the next ones begin, so
// that the keys and values that are read at one time fit into L2; within them the tiles come in
// find_query_tile's order, which with a causal mask puts the heaviest of a sequence first. Rounds of the grid
// alternate in direction: who got a heavier item than its neighbours in one round gets a lighter one in the
// next.
struct WorkOrder {
  int tiles, heads, heads_at_once;

  __host__ __device__ int items() const {
    return (heads + heads_at_once - 1) / heads_at_once * heads_at_once * tiles;
  }
};

struct WorkItem {
  int tile, head;  // head >= heads: nothing to do
};

// What this block does in `round`; tile -1 when no rounds are left.
__device__ __forceinline__ WorkItem work_item(const WorkOrder& order, int round) {
  const int grid = ptx::opaque(int(gridDim.x)), block = int(blockIdx.x);  // not kept in registers
  const int begin = round * grid, index = begin + (round % 2 == 0 ? block : grid - 1 - block);
  if (begin >= order.items()) return {-1, 0};
  if (index >= order.items()) return {0, order.heads};
  const int group = order.tiles * order.heads_at_once, rest = index % group;
  return {rest / order.heads_at_once, index / group * order.heads_at_once + rest % order.heads_at_once};
}

}  // namespace slipway
