// Packed variable-length attention on sm_90a, after FlashAttention-3 (Shah et al., arXiv 2407.08608).
//
// A block is persistent. One warp of its first warpgroup, the producer, brings tiles of queries, keys and
// values to shared memory by TMA; the other warpgroups, the consumers, compute 64 query rows each by wgmma.
// Two things overlap:
//   * within a consumer, the scores of the next key tile are computed while the values of this one are added
//     up, and the softmax of the next runs beside the latter;
//   * between consumers, turns are taken (named barriers): while one has its softmax, another has the tensor
//     cores.
// Key tiles are visited from the last one back, so that the tile that needs a mask for the sequence's end
// comes first.
//
// Values of 8 bits are transposed on their way, by the other warps of the first warpgroup. The tensor cores
// keep about 14 bits of a sum of E4M3 products (DeepSeek-V3, arXiv 2412.19437, section 3.3.2), so rows of very
// many keys lose more than the rounding of their inputs; the emulator sums in float32 and does not show it.
//
// Tensor maps cover the packed arrays: the last tile of a sequence holds rows of the next one too. Their
// scores are hidden, but a probability of 0 times a value that is no number is none: those rows of the value
// tile are zeroed, by the consumers or by whoever transposes.
#pragma once
#include "slipway/flash_attention_sm90_consumer.cuh"
#include "slipway/flash_attention_sm90_producer.cuh"
#include "slipway/flash_attention_sm90_transpose.cuh"

namespace slipway {

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    flash_attention_sm90_kernel(const __grid_constant__ FlashAttentionSm90Params p) {
  DYNAMIC_SMEM(shared);
  const Sm90Barriers<Shape> barriers = {reinterpret_cast<uint64_t*>(shared + Shape::kBarriersAt)};
  if (threadIdx.x == 0) {
    ptx::prefetch_tensor_map(&p.query_map);
    ptx::prefetch_tensor_map(&p.key_map);
    ptx::prefetch_tensor_map(&p.value_map);
    barriers.initialise();
  }
  __syncthreads();
  // The same in all lanes of a warp, and the compiler knows it.
  const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) / 32, 0);
  if (warp < 4) {
    ptx::registers_decrease<Shape::kProducerRegisters>();
    if (warp == 0)
      flash_attention_produce<Shape>(p, shared, barriers);
    else if constexpr (Shape::kTransposes)
      flash_attention_transpose<Shape>(shared, barriers, warp - 1);
  } else {
    ptx::registers_increase<Shape::kConsumerRegisters>();
    Sm90Consumer<Shape> consumer = {p.call,  shared, barriers, warp / 4 - 1, int(threadIdx.x) % 128,
                                    nullptr, 0};
    consumer.run();
  }
}

}  // namespace slipway
