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
  constexpr int kEach = 8;  // sequences a lane looks at in one round
  const int lane = threadIdx.x % 32;
  int rest = index;  // how many tiles from the round's first to the one sought
  for (int first = 0; first <= batch; first += 32 * kEach) {
    // Sequence `batch` is the rows behind the last one; those after it are empty.
    int offsets[kEach + 1], own = 0;
#pragma unroll
    for (int i = 0; i <= kEach; i++) {
      const int sequence = first + lane * kEach + i;
      offsets[i] = sequence <= batch ? cu_seqlens[sequence] : rows;
    }
#pragma unroll
    for (int i = 0; i < kEach; i++) own += (offsets[i + 1] - offsets[i] + tile_rows - 1) / tile_rows;
    int through = own;  // tiles up to this lane's sequences, its own included
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_sync(0xffffffffu, through, max(lane - step, 0));
      if (lane >= step) through += other;
    }
    const unsigned reached = __ballot_sync(0xffffffffu, rest < through);
    if (reached != 0) {
      QueryTile tile = {0, 0, 0, 0};
      int number = rest - (through - own);
#pragma unroll
      for (int i = 0; i < kEach; i++) {
        const int length = offsets[i + 1] - offsets[i], tiles = (length + tile_rows - 1) / tile_rows;
        if (number >= 0 && number < tiles)
          tile = {first + lane * kEach + i, offsets[i], length, (tiles - 1 - number) * tile_rows};
        number -= tiles;
      }
      const int owner = __ffs(int(reached)) - 1;
      return {__shfl_sync(0xffffffffu, tile.sequence, owner), __shfl_sync(0xffffffffu, tile.begin, owner),
              __shfl_sync(0xffffffffu, tile.length, owner), __shfl_sync(0xffffffffu, tile.first, owner)};
    }
    rest -= __shfl_sync(0xffffffffu, through, 31);
  }
  return {batch, rows, 0, -1};
}

}  // namespace slipway
