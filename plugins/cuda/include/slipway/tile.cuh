// Tiles in shared memory, and the fragments that tensor cores read from them.
//
// A tile has rows of D elements without padding. The 16-byte chunks of a row are permuted by the row's
// number, so that the eight rows which one 8x8 matrix of ldmatrix reads lie in different banks, as do the
// rows that a warp writes. Everything here takes chunk numbers, so it serves 16-bit and 8-bit elements alike:
// eight or sixteen to a chunk.
#pragma once
#include <cstdint>

#include "slipway/ptx.cuh"

namespace slipway {

template <class T, int D>
struct TileLayout {
  static constexpr int kPerChunk = 16 / int(sizeof(T)), kChunks = D / kPerChunk;
  static_assert(kChunks == 4 || kChunks % 8 == 0, "a row is 64 bytes or a multiple of 128");

  // Where chunk `chunk` of row `row` begins, in elements.
  __device__ static __forceinline__ int at(int row, int chunk) {
    const int turn = kChunks >= 8 ? row & 7 : row >> 1 & 3;  // rows of 64 bytes: two share all banks
    return (row * kChunks + (chunk ^ turn)) * kPerChunk;
  }
};

// Copies `Rows` rows to a tile with cp.async, by `Threads` threads of which this is number `thread`.
// row_offset(row): where the row begins, in elements from `base`, a multiple of 16 bytes; negative: the row
// becomes zero. So do elements from `columns` on (a multiple of a chunk). The caller commits, waits and
// synchronises. Rows may come from anywhere: one after another in a sequence, several query heads of a group,
// or blocks of a cache.
template <class T, int D, int Rows, int Threads, class RowOffset>
__device__ __forceinline__ void load_tile(T* tile, const T* base, int columns, int thread,
                                          RowOffset row_offset) {
  using Layout = TileLayout<T, D>;
  static_assert(Rows * Layout::kChunks % Threads == 0 && Threads % Layout::kChunks == 0,
                "each thread copies the same column of chunks, and all copy equally many");
  constexpr int row_step = Threads / Layout::kChunks;
  const int chunk = thread % Layout::kChunks;
  const bool inside = chunk * Layout::kPerChunk < columns;
#pragma unroll
  for (int i = 0; i < Rows / row_step; i++) {
    const int row = thread / Layout::kChunks + i * row_step;
    const int64_t offset = row_offset(row);
    const bool valid = inside && offset >= 0;
    ptx::cp_async_16(tile + Layout::at(row, chunk), base + (valid ? offset + chunk * Layout::kPerChunk : 0),
                     valid);
  }
}

// Fragments. `row` and `chunk` are a fragment's first, `row` a multiple of 8; all lanes of the warp call. A
// 16-bit k step of mma.m16n8k16 and an 8-bit one of mma.m16n8k32 are two chunks each.

// A, 16 rows by two chunks, rows of the tile being rows of A.
template <class T, int D>
__device__ __forceinline__ void load_a(uint32_t (&f)[4], const T* tile, int row, int chunk, int lane) {
  const int matrix = lane / 8;
  ptx::ldmatrix_x4<false>(
      f, tile + TileLayout<T, D>::at(row + (matrix & 1) * 8 + lane % 8, chunk + (matrix >> 1)));
}

// B of 16 columns by two chunks, rows of the tile being columns of B (keys, for scores): f[0], f[1] belong to
// columns 0 to 7, f[2], f[3] to 8 to 15.
template <class T, int D>
__device__ __forceinline__ void load_b(uint32_t (&f)[4], const T* tile, int row, int chunk, int lane) {
  const int matrix = lane / 8;
  ptx::ldmatrix_x4<false>(
      f, tile + TileLayout<T, D>::at(row + (matrix >> 1) * 8 + lane % 8, chunk + (matrix & 1)));
}

// B of 16 columns (two chunks) by 16 rows, rows of the tile being rows of B (values); 16-bit elements: f[0],
// f[1] belong to columns 0 to 7, f[2], f[3] to 8 to 15.
template <class T, int D>
__device__ __forceinline__ void load_b_transposed(uint32_t (&f)[4], const T* tile, int row, int chunk,
                                                  int lane) {
  static_assert(sizeof(T) == 2, "ldmatrix transposes 16-bit elements only");
  const int matrix = lane / 8;
  ptx::ldmatrix_x4<true>(
      f, tile + TileLayout<T, D>::at(row + (matrix & 1) * 8 + lane % 8, chunk + (matrix >> 1)));
}

}  // namespace slipway
