// Fragments of mma.m16n8k16 from tiles of keys and values as they lie in the pools: 16-bit, int8 or E4M3 elements.
//
// ldmatrix hands out 16-bit pieces, so with 8-bit elements a lane gets pairs of neighbours. A sum over k does not
// care for the order of k, and columns of the output may be any: with 8-bit keys, k element (2t, 2t + 1, 2t + 8,
// 2t + 9) of a step of 16 is element 4t to 4t + 3 of the row, for query and key alike; with 8-bit values the first of
// two blocks of eight columns has the even columns of a group of 16, the second the odd ones. (t = lane % 4)
#pragma once
#include "slipway/dequantize.cuh"
#include "slipway/paged_attention_params.cuh"
#include "slipway/tile.cuh"

namespace slipway {

template <class T, PoolKind Kind>
struct PoolType {
  using type = uint8_t;
};
template <class T>
struct PoolType<T, PoolKind::k16Bit> {
  using type = T;
};

// Four 8-bit elements as two pairs of T.
template <class T, PoolKind Kind>
__device__ __forceinline__ void expand(uint32_t bytes, uint32_t (&pairs)[2]) {
  if constexpr (Kind == PoolKind::kInt8) expand_int8<T>(bytes, pairs);
  else expand_e4m3<T>(bytes, pairs);
}

template <class T, PoolKind Kind, int D>
struct PoolTile {
  using Element = typename PoolType<T, Kind>::type;
  using Layout = TileLayout<Element, D>;
  static constexpr bool k8Bit = Kind != PoolKind::k16Bit;
  static constexpr int kKeySteps = k8Bit ? 4 : 2;  // steps of 16 that load_keys gives: four chunks

  // B of scores: keys `key` to key + 7, steps from `step` on (a multiple of kKeySteps).
  __device__ static __forceinline__ void load_keys(uint32_t (&b)[kKeySteps][2], const Element* tile, int key,
                                                   int step, int lane) {
    uint32_t f[4];
    ptx::ldmatrix_x4<false>(f, tile + Layout::at(key + lane % 8, step * 4 / kKeySteps + lane / 8));
    if constexpr (k8Bit) {
#pragma unroll
      for (int i = 0; i < 4; i++) expand<T, Kind>(f[i], b[i]);
    } else {
      b[0][0] = f[0], b[0][1] = f[1], b[1][0] = f[2], b[1][1] = f[3];
    }
  }

  // B of the output: keys `key` to key + 31 (two steps), columns 16 * group to 16 * group + 15 (two blocks):
  // b[step][block].
  __device__ static __forceinline__ void load_values(uint32_t (&b)[2][2][2], const Element* tile, int key,
                                                     int group, int lane) {
    const int matrix = lane / 8;
    if constexpr (k8Bit) {
      uint32_t f[4];
      ptx::ldmatrix_x4<true>(f, tile + Layout::at(key + lane, group));
#pragma unroll
      for (int i = 0; i < 4; i++) {
        uint32_t pairs[2];
        expand<T, Kind>(__byte_perm(f[i], 0, 0x3120), pairs);  // two keys: their even columns, then their odd ones
        b[i / 2][0][i % 2] = pairs[0], b[i / 2][1][i % 2] = pairs[1];
      }
    } else {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        uint32_t f[4];
        const int row = key + 16 * i + (matrix & 1) * 8 + lane % 8;
        ptx::ldmatrix_x4<true>(f, tile + Layout::at(row, 2 * group + (matrix >> 1)));
        b[i][0][0] = f[0], b[i][0][1] = f[1], b[i][1][0] = f[2], b[i][1][1] = f[3];
      }
    }
  }

  // Of a group of 16 columns, the first of the four that a lane's accumulators hold, and its neighbour: element
  // (block, i) of a row is column value_column(block, i).
  __device__ static __forceinline__ int value_column(int block, int i) {
    const int t = ptx::fresh_thread() % 4;
    return k8Bit ? 4 * t + 2 * i + block : 8 * block + 2 * t + i;
  }
};

// A of scores: 16 rows of queries, a fragment for each step of 16; in registers, or (where those are needed for more)
// in shared memory, where each thread has its own place.
template <class T, PoolKind Kind, int D, bool InRegisters>
struct QueryFragments {
  uint32_t registers[InRegisters ? D / 16 : 1][4];
  uint4* mine;  // [D / 16][blockDim.x], this thread's column

  // row: the lane's two rows (lane / 4 and 8 below it) in global memory, nullptr: zero. Elements from key_dim on are
  // zero. shared: [D / 16][blockDim.x], when not InRegisters.
  __device__ __forceinline__ void load(const T* const (&row)[2], int key_dim, uint4* shared) {
    constexpr bool k8Bit = Kind != PoolKind::k16Bit;
    const int thread = ptx::fresh_thread(), t = thread % 4;
    mine = shared + thread;
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
      uint32_t a[4];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int column = 16 * step + (k8Bit ? 4 * t : 2 * t), far = column + (k8Bit ? 2 : 8);
        const bool valid = row[h] != nullptr;
        a[h] = valid && column < key_dim ? *reinterpret_cast<const uint32_t*>(row[h] + column) : 0u;
        a[2 + h] = valid && far < key_dim ? *reinterpret_cast<const uint32_t*>(row[h] + far) : 0u;
      }
      if constexpr (InRegisters) {
#pragma unroll
        for (int i = 0; i < 4; i++) registers[step][i] = a[i];
      } else {
        mine[step * blockDim.x] = uint4{a[0], a[1], a[2], a[3]};
      }
    }
  }

  __device__ __forceinline__ void fragment(uint32_t (&a)[4], int step) const {
    if constexpr (InRegisters) {
#pragma unroll
      for (int i = 0; i < 4; i++) a[i] = registers[step][i];
    } else {
      const uint4 all = mine[step * blockDim.x];
      a[0] = all.x, a[1] = all.y, a[2] = all.z, a[3] = all.w;
    }
  }
};

}  // namespace slipway
