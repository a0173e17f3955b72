// Launch of a shape of flash_attention_sm90.cuh, for the units that compile them: tensor maps, order of the
// work.
#pragma once
#include <algorithm>

#include "device.hpp"
#include "dispatch.hpp"
#include "flash_attention.hpp"
#include "slipway/flash_attention_sm90.cuh"
#include "slipway/tensor_map.cuh"

namespace slipway {

// [tokens, heads, size] as size, heads, tokens. The stride of an axis of size 1 means nothing and may be
// anything: the map gets that of a contiguous tensor.
template <class Shape>
bool make_map(ptx::TensorMap& map, const void* base, int64_t size, int64_t heads, int64_t head_stride,
              int64_t tokens, int64_t row_stride, int box_rows) {
  using T = typename Shape::T;
  if (heads == 1) head_stride = size;
  if (tokens == 1) row_stride = heads * head_stride;
  return make_tensor_map<T>(map, {base,
                                  {uint64_t(size), uint64_t(heads), uint64_t(tokens)},
                                  {uint64_t(head_stride) * sizeof(T), uint64_t(row_stride) * sizeof(T)},
                                  {uint32_t(Shape::kPanelColumns), 1, uint32_t(box_rows)}});
}

// False: the copy engine cannot copy these tensors, or there are too many tiles; nothing was launched.
template <class Shape>
bool launch_sm90_shape(const FlashAttentionParams& p, void* stream) {
  static_assert(Shape::kSharedBytes <= 227 << 10, "more shared memory than a block may have");
  FlashAttentionSm90Params params = {};
  params.call = p;
  // Without keys nothing is copied, but maps must describe something.
  const bool no_keys = p.tokens_k == 0;
  const bool made = make_map<Shape>(params.query_map, p.query, p.head_dim, p.heads, p.query_head, p.tokens_q,
                                    p.query_row, Shape::kGroupRows) &&
                    make_map<Shape>(params.key_map, no_keys ? p.query : p.key, p.head_dim, p.kv_heads,
                                    p.key_head, no_keys ? 1 : p.tokens_k, p.key_row, Shape::kBlockN) &&
                    make_map<Shape>(params.value_map, no_keys ? p.query : p.value, p.value_dim, p.kv_heads,
                                    p.value_head, no_keys ? 1 : p.tokens_k, p.value_row, Shape::kBlockN);
  const int64_t tiles = max_query_tiles(p.tokens_q, p.batch, Shape::kBlockM);
  if (!made || tiles * p.heads > (1 << 30)) return false;

  // Heads whose keys and values fill half of L2 are read at one time; the rest is for everything else.
  const int64_t bytes_of_head =
      std::max<int64_t>(p.tokens_k, 1) * (p.head_dim + p.value_dim) * int64_t(sizeof(typename Shape::T));
  const int64_t kv_heads_at_once = std::clamp<int64_t>(device().l2_bytes / 2 / bytes_of_head, 1, p.kv_heads);
  params.order = {int(tiles), p.heads, int(kv_heads_at_once) * (p.heads / p.kv_heads)};
  const int blocks = std::min(device().sm_count, params.order.items());
  ptx::launch(flash_attention_sm90_kernel<Shape>, dim3(unsigned(blocks)), dim3(Shape::kThreads),
              Shape::kSharedBytes, stream, params);
  return true;
}

// Launches ShapeOf<16-bit type, head size, whether scores are mapped>: where they are not, a shape of fewer
// registers, if there is one.
template <template <class, int, bool> class ShapeOf, class Half>
bool launch_sm90_head_size(const FlashAttentionParams& p, void* stream) {
  const bool maps_scores = p.mask.softcap > 0.f || p.mask.alibi_slopes != nullptr || p.bias != nullptr;
  bool launched = false;
  dispatch_head_size(std::max(p.head_dim, p.value_dim), [&](auto size) {
    constexpr int D = decltype(size)::value;
    launched = maps_scores ? launch_sm90_shape<ShapeOf<Half, D, true>>(p, stream)
                           : launch_sm90_shape<ShapeOf<Half, D, false>>(p, stream);
  });
  return launched;
}
template <template <class, int, bool> class ShapeOf>
bool launch_sm90(const FlashAttentionParams& p, DType half, void* stream) {
  bool launched = false;
  dispatch_half(half, [&](auto tag) {
    launched = launch_sm90_head_size<ShapeOf, typename decltype(tag)::type>(p, stream);
  });
  return launched;
}

}  // namespace slipway
