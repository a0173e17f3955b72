// How rows leave a consumer of flash_attention's form for sm_90a: output and log_sum_exp.
#pragma once
#include "slipway/flash_attention_sm90_shape.cuh"
#include "slipway/softmax.cuh"

namespace slipway {

// 16 rows of a warp, of which the first `rows` are there. out: the first one's columns of the head;
// row_stride, columns: in elements; factors: of rows l / 4 and l / 4 + 8.

// 16-bit inputs: by way of shared memory (the panels of the warp's queries, to which fence_proxy_async() must
// give way afterwards), so that each row is written in chunks of 16 bytes.
template <class Shape>
__device__ __forceinline__ void store_staged(typename Shape::Out* out, int64_t row_stride, int columns,
                                             int rows, const float (&output)[Shape::kHeadSize / 8][4],
                                             const float (&factors)[2], unsigned char* staged, int lane) {
  using Out = typename Shape::Out;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = lane / 4 + 8 * h;
#pragma unroll
    for (int d = 0; d < Shape::kHeadSize / 8; d++) {  // chunks of a row are permuted by its number
      const int at = d / 8 * Shape::kQueryPanelBytes + row * 128 + (d % 8 ^ (row & 7)) * 16 + lane % 4 * 4;
      *reinterpret_cast<uint32_t*>(staged + at) =
          pack<Out>(output[d][2 * h] * factors[h], output[d][2 * h + 1] * factors[h]);
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < Shape::kHeadSize / 16; i++) {  // four rows of a panel a step
    const int panel = i / 4, row = i % 4 * 4 + lane / 8, chunk = lane % 8, column = panel * 64 + chunk * 8;
    const uint4 x = *reinterpret_cast<const uint4*>(staged + panel * Shape::kQueryPanelBytes + row * 128 +
                                                    (chunk ^ (row & 7)) * 16);
    if (row < rows && column < columns) *reinterpret_cast<uint4*>(out + row * row_stride + column) = x;
  }
}

// Transposed values: pairs of blocks are the even and the odd columns of 16, so that a lane has four
// neighbours of them and the four lanes of a row fill a sector of 32 bytes.
template <class Shape>
__device__ __forceinline__ void store_parted(typename Shape::Out* out, int64_t row_stride, int columns,
                                             int rows, const float (&output)[Shape::kHeadSize / 8][4],
                                             const float (&factors)[2], int lane) {
  using Out = typename Shape::Out;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int row = lane / 4 + 8 * h;
    if (row >= rows) continue;
#pragma unroll
    for (int d = 0; d < Shape::kHeadSize / 8; d += 2) {
      if (d * 8 >= columns) continue;
      const float(&even)[4] = output[d], (&odd)[4] = output[d + 1];
      *reinterpret_cast<uint2*>(out + row * row_stride + d * 8 + lane % 4 * 4) = {
          pack<Out>(even[2 * h] * factors[h], odd[2 * h] * factors[h]),
          pack<Out>(even[2 * h + 1] * factors[h], odd[2 * h + 1] * factors[h])};
    }
  }
}

}  // namespace slipway
