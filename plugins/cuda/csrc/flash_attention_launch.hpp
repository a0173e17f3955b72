// Launch of a shape of flash_attention.cuh, for the units that compile them.
#pragma once
#include <algorithm>

#include "dispatch.hpp"
#include "flash_attention.hpp"
#include "slipway/flash_attention.cuh"

namespace slipway {

template <class Shape>
void launch_shape(const FlashAttentionParams& p, void* stream) {
  const int64_t tiles = max_query_tiles(p.tokens_q, p.batch, Shape::kBlockM);
  ptx::launch(flash_attention_kernel<Shape>, dim3(unsigned(tiles), unsigned(p.heads)), dim3(Shape::kThreads),
              Shape::kSharedBytes, stream, p);
}

// Tiles as large as registers allow without spilling (255 a thread), and shared memory for two blocks on a
// multiprocessor. FP8 tiles take half the memory, and fewer registers for head size 256.
template <class T, class Out>
void launch_head_size(const FlashAttentionParams& p, void* stream) {
  dispatch_head_size(std::max(p.head_dim, p.value_dim), [&](auto size) {
    constexpr int D = decltype(size)::value;
    if constexpr (D == 64) launch_shape<FlashAttentionShape<T, Out, 64, 2, 64>>(p, stream);
    if constexpr (D == 128) launch_shape<FlashAttentionShape<T, Out, 128, 2, 32>>(p, stream);
    if constexpr (D == 256)
      launch_shape<FlashAttentionShape<T, Out, 256, 1, sizeof(T) == 1 ? 64 : 32>>(p, stream);
  });
}

}  // namespace slipway
