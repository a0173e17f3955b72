// Values of 8 bits for flash_attention's form for sm_90a: wgmma wants them with a row a column of the output
// and the keys side by side, while TMA brings a row a key (FlashAttention-3, arXiv 2407.08608, section 3.3).
//
// ldmatrix.trans transposes pairs of bytes. From 32 keys of 16 columns (a chunk) lane l gets, with g = l / 4
// and t = l % 4, in register i the keys 8i + 2t and 8i + 2t + 1 of the columns 2g and 2g + 1. Parting the
// bytes of two registers gives the keys 2t, 2t + 1, 8 + 2t, 9 + 2t of one column: what stmatrix writes as
// bytes 4t to 4t + 3 of a row. Both orders are left so, for they fit what is on the other side.
//
// Keys: these are the keys, of two blocks of eight, of which a lane of a consumer has the probabilities. The
// sum may be taken in any order, so byte 16j + 4t + i of a row stands for key 16j + 8(i / 2) + 2t + i % 2,
// and probabilities need no exchange between lanes.
//
// Columns: the even ones of a chunk are its first eight rows, the odd ones the other eight. So blocks 2c and
// 2c + 1 of the output are the even and the odd columns of chunk c, and a lane holds its rows' columns
// 16c + 4t to 16c + 4t + 3.
#pragma once
#include "slipway/flash_attention_sm90_shape.cuh"

namespace slipway {

// Where byte `at` of a panel lies, whose rows have RowBytes (PTX ISA, "Swizzling modes").
template <int RowBytes>
__device__ __forceinline__ int swizzled(int at) {
  return at ^ (at >> 3 & (RowBytes - 16));
}

// One warp's part of a tile. Keys from `keys` on belong to another sequence, or to none: they become zeros,
// for a probability of 0 times a value that is no number is none.
template <class Shape>
__device__ __forceinline__ void transpose_values(unsigned char* transposed, const unsigned char* values,
                                                 int keys, int warp, int lane) {
  constexpr int Chunks = Shape::kHeadSize / 16, PanelChunks = Shape::kRowBytes / 16;
  constexpr int Units = Shape::kBlockN / 32 * Chunks, KeyChunks = Shape::kPanelKeys / 16;
#pragma unroll 2
  for (int unit = warp; unit < Units; unit += Shape::kTransposers) {
    const int group = unit / Chunks, chunk = unit % Chunks;
    const int from =
        swizzled<Shape::kRowBytes>((32 * group + lane) * Shape::kRowBytes + chunk % PanelChunks * 16);
    uint32_t v[4];
    ptx::ldmatrix_x4<true>(v, values + chunk / PanelChunks * Shape::kPanelBytes + from);
    if (32 * group + 32 > keys) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int key = 32 * group + 8 * i + lane % 4 * 2;
        v[i] = key + 1 < keys ? v[i] : key < keys ? v[i] & 0xffffu : 0;
      }
    }
    const uint32_t parted[4] = {__byte_perm(v[0], v[1], 0x6420), __byte_perm(v[2], v[3], 0x6420),
                                __byte_perm(v[0], v[1], 0x7531), __byte_perm(v[2], v[3], 0x7531)};
    const int row = 16 * chunk + lane / 16 * 8 + lane % 8, key_chunk = 2 * group + lane / 8 % 2;
    const int to = swizzled<Shape::kPanelKeys>(row * Shape::kPanelKeys + key_chunk % KeyChunks * 16);
    ptx::stmatrix_x4<false>(transposed + key_chunk / KeyChunks * Shape::kKeyPanelBytes + to, parted);
  }
}

// What a warp that transposes does, from the kernel's beginning to its end. warp: below kTransposers.
template <class Shape>
__device__ __forceinline__ void flash_attention_transpose(unsigned char* shared,
                                                          const Sm90Barriers<Shape>& barriers, int warp) {
  const int* const loaded_keys = reinterpret_cast<const int*>(shared + Shape::kLoadedKeysAt);
  for (uint32_t count = 0;; count++) {
    const uint32_t stage = stage_of<Shape>(count), parity = parity_of<Shape>(count);
    const int lane = ptx::opaque(int(threadIdx.x)) % 32;  // nothing that follows from it is kept in registers
    ptx::mbarrier_wait(barriers.loaded_full(stage), parity);
    const int keys = loaded_keys[stage];
    if (keys < 0) break;
    ptx::mbarrier_wait(barriers.value_empty(stage), parity ^ 1);
    transpose_values<Shape>(shared + Shape::kValueAt + stage * Shape::kTileBytes,
                            shared + Shape::kLoadedAt + stage * Shape::kTileBytes, keys, warp, lane);
    ptx::fence_proxy_async();
    __syncwarp();
    if (lane == 0) {
      ptx::mbarrier_arrive(barriers.loaded_empty(stage));
      ptx::mbarrier_arrive(barriers.value_full(stage));
    }
  }
}

}  // namespace slipway
