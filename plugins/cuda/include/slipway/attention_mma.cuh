// The two matrix products of attention, by one warp on tiles in shared memory: scores = query * key^T, and
// output += probabilities * value. 16-bit elements go through mma.m16n8k16, E4M3 through mma.m16n8k32.
#pragma once
#include "slipway/numeric.cuh"
#include "slipway/tile.cuh"

namespace slipway {

// One k step of a product: two chunks of either operand's rows.
template <class T>
__device__ __forceinline__ void mma_step(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (sizeof(T) == 2)
    ptx::mma_m16n8k16<T>(d, a, b);
  else
    ptx::mma_m16n8k32_e4m3(d, a, b);
}

// scores = query rows * keys^T, for RowTiles times 16 query rows from `row` on and all keys of a tile.
// query: a tile of rows of D; keys: a tile of 8 * Blocks rows of D.
template <class T, int D, int RowTiles, int Blocks>
__device__ __forceinline__ void multiply_query_key(float (&scores)[RowTiles][Blocks][4], const T* query,
                                                   int row, const T* keys, int lane) {
#pragma unroll
  for (int r = 0; r < RowTiles; r++)
#pragma unroll
    for (int n = 0; n < Blocks; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) scores[r][n][i] = 0.f;
  // E4M3 fragments may become twice as many registers (see FlashAttentionShape): then two k steps at once are
  // enough.
  constexpr int kUnroll = sizeof(T) == 1 && D == 256 ? 2 : TileLayout<T, D>::kChunks;
#pragma unroll kUnroll
  for (int chunk = 0; chunk < TileLayout<T, D>::kChunks; chunk += 2) {
    uint32_t a[RowTiles][4];
#pragma unroll
    for (int r = 0; r < RowTiles; r++) load_a<T, D>(a[r], query, row + 16 * r, chunk, lane);
#pragma unroll
    for (int n = 0; n < Blocks; n += 2) {
      uint32_t b[4];
      load_b<T, D>(b, keys, 8 * n, chunk, lane);
#pragma unroll
      for (int r = 0; r < RowTiles; r++) {
        mma_step<T>(scores[r][n], a[r], {b[0], b[1]});
        mma_step<T>(scores[r][n + 1], a[r], {b[2], b[3]});
      }
    }
  }
}

// multiply_probability_value for E4M3 values, 32 keys a k step. A lane's scores are of keys 2t, 2t + 1 of
// each block of eight (t = lane % 4), while a fragment wants four neighbours: the sum over keys may be taken
// in any order, so keys 2t, 2t + 1, 8 + 2t, 9 + 2t stand in for them, on both sides. ldmatrix transposes
// pairs of bytes, which leaves values of an even and an odd column in each register: they are parted, and go
// to two products. So blocks 2i and 2i + 1 of the output are the even and the odd columns of 16 i to 16 i +
// 15, and a lane holds its rows' columns 16 i + 4t to 16 i + 4t + 3.
template <class T, int D, int RowTiles, int Blocks>
__device__ __forceinline__ void multiply_probability_value_e4m3(float (&output)[RowTiles][D / 8][4],
                                                                const float (&p)[RowTiles][Blocks][4],
                                                                const T* values, int lane) {
#pragma unroll
  for (int n = 0; n < Blocks; n += 4) {
    uint32_t a[RowTiles][4];
#pragma unroll
    for (int r = 0; r < RowTiles; r++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const auto &x = p[r][n + i / 2 * 2], &y = p[r][n + i / 2 * 2 + 1];
        const int h = i % 2 * 2;
        a[r][i] = pack_e4m3(x[h], x[h + 1], y[h], y[h + 1]);
      }
#pragma unroll
    for (int chunk = 0; chunk < TileLayout<T, D>::kChunks; chunk++) {
      uint32_t v[4];
      ptx::ldmatrix_x4<true>(v, values + TileLayout<T, D>::at(8 * n + lane, chunk));
      const uint32_t even[2] = {__byte_perm(v[0], v[1], 0x6420), __byte_perm(v[2], v[3], 0x6420)};
      const uint32_t odd[2] = {__byte_perm(v[0], v[1], 0x7531), __byte_perm(v[2], v[3], 0x7531)};
#pragma unroll
      for (int r = 0; r < RowTiles; r++) {
        mma_step<T>(output[r][2 * chunk], a[r], even);
        mma_step<T>(output[r][2 * chunk + 1], a[r], odd);
      }
      // No load is moved up over this: with heads of 256 there are no registers for fragments far ahead.
      if constexpr (D == 256)
        if (chunk % 2 == 1) __syncwarp();
    }
  }
}

// output += probabilities * values, for RowTiles times 16 rows; values: a tile of 8 * Blocks rows (keys) of
// D. The accumulators of two blocks of scores are, rounded, the A fragment of a k step of 16 keys.
template <class T, int D, int RowTiles, int Blocks>
__device__ __forceinline__ void multiply_probability_value(float (&output)[RowTiles][D / 8][4],
                                                           const float (&p)[RowTiles][Blocks][4],
                                                           const T* values, int lane) {
  if constexpr (sizeof(T) == 1) {
    multiply_probability_value_e4m3<T, D>(output, p, values, lane);
  } else {
#pragma unroll
    for (int n = 0; n < Blocks; n += 2) {
      uint32_t a[RowTiles][4];
#pragma unroll
      for (int r = 0; r < RowTiles; r++) {
        a[r][0] = pack<T>(p[r][n][0], p[r][n][1]), a[r][1] = pack<T>(p[r][n][2], p[r][n][3]);
        a[r][2] = pack<T>(p[r][n + 1][0], p[r][n + 1][1]), a[r][3] = pack<T>(p[r][n + 1][2], p[r][n + 1][3]);
      }
#pragma unroll
      for (int chunk = 0; chunk < TileLayout<T, D>::kChunks; chunk += 2) {
        uint32_t b[4];
        load_b_transposed<T, D>(b, values, 8 * n, chunk, lane);
#pragma unroll
        for (int r = 0; r < RowTiles; r++) {
          mma_step<T>(output[r][chunk], a[r], {b[0], b[1]});
          mma_step<T>(output[r][chunk + 1], a[r], {b[2], b[3]});
        }
      }
    }
  }
}

}  // namespace slipway
