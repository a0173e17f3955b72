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

// Calls launch_shape for the head size's ShapeOf<D>.
template <template <int> class ShapeOf>
void launch_head_size(const FlashAttentionParams& p, void* stream) {
  dispatch_head_size(std::max(p.head_dim, p.value_dim),
                     [&](auto size) { launch_shape<ShapeOf<decltype(size)::value>>(p, stream); });
}

}  // namespace slipway
