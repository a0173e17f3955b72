// Tiles of query rows over sequences that lie packed one after another.
//
// The host knows the number of rows and sequences, but no length: it starts as many blocks as any lengths
// could need, and each block finds its tile from the offsets on the device.
#pragma once
#include <cstdint>

#include "slipway/ptx.cuh"

namespace slipway {

struct QueryTile {
  int sequence;  // `batch` for the rows behind the last sequence, which belong to none
  int begin;     // the sequence's first row among the packed ones
  int length;    // the sequence's rows
  int first;     // the tile's first row within the sequence; -1: there is no such tile
};

// The most tiles of `tile_rows` rows that `rows` packed rows of `batch` sequences can have, those behind the
// last sequence included.
inline int64_t max_query_tiles(int64_t rows, int64_t batch, int64_t tile_rows) {
  const int64_t most = (rows + (batch + 1) * (tile_rows - 1)) / tile_rows;
  return most < rows ? most : rows;
}

// Tile number `index`, sequence after sequence, within a sequence from its end (with a causal mask the last
// rows have the most to do). cu_seqlens: [batch + 1], first 0; rows: of the packed tensor. All lanes of the
// warp call it and get the same.
__device__ __forceinline__ QueryTile find_query_tile(const int* cu_seqlens, int batch, int rows,
                                                     int tile_rows, int index) {
  const int lane = threadIdx.x % 32;
  int before = 0;  // tiles of the sequences before those that the warp looks at
  for (int first = 0; first <= batch; first += 32) {
    const int sequence = min(first + lane, batch + 1);
    const int begin = sequence <= batch ? cu_seqlens[sequence] : rows;
    const int end = sequence < batch ? cu_seqlens[sequence + 1] : rows;
    const int tiles = (end - begin + tile_rows - 1) / tile_rows;
    int through = tiles;  // tiles up to this lane's sequence, its own included
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_sync(0xffffffffu, through, max(lane - step, 0));
      if (lane >= step) through += other;
    }
    const unsigned reached = __ballot_sync(0xffffffffu, index < before + through);
    if (reached != 0) {
      const int owner = __ffs(int(reached)) - 1;
      const int number = before + through - 1 - index;  // counted from the sequence's end
      return {first + owner, __shfl_sync(0xffffffffu, begin, owner),
              __shfl_sync(0xffffffffu, end - begin, owner),
              __shfl_sync(0xffffffffu, number, owner) * tile_rows};
    }
    before += __shfl_sync(0xffffffffu, through, 31);
  }
  return {batch, rows, 0, -1};
}

}  // namespace slipway
