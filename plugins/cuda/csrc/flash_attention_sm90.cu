// flash_attention in its form for sm_90a: the shapes that are compiled, tensor maps, launch.
#ifdef SLIPWAY_ARCH_90A  // emulated builds leave it out unless they ask for it
#include "slipway/flash_attention_sm90.cuh"

#include <algorithm>

#include "device.hpp"
#include "dispatch.hpp"
#include "flash_attention.hpp"
#include "slipway/tensor_map.cuh"

namespace slipway {
namespace {

// Two stages of keys and values fit beside the queries. Three consumers have 160 registers each: enough for
// heads of 64 and tiles of 112 keys, without softcap, ALiBi and bias.
template <class T, int D, bool MapsScores>
using ShapeOf = FlashAttentionSm90Shape<T, D, D == 64 && !MapsScores ? 3 : 2,
                                        D == 256                 ? 80
                                        : D == 64 && !MapsScores ? 112
                                                                 : 128,
                                        MapsScores>;

// [tokens, heads, size] as size, heads, tokens. The stride of an axis of size 1 means nothing and may be
// anything: the map gets that of a contiguous tensor.
template <class T>
bool make_map(ptx::TensorMap& map, const void* base, int64_t size, int64_t heads, int64_t head_stride,
              int64_t tokens, int64_t row_stride, int box_rows) {
  if (heads == 1) head_stride = size;
  if (tokens == 1) row_stride = heads * head_stride;
  return make_tensor_map<T>(map, {base,
                                  {uint64_t(size), uint64_t(heads), uint64_t(tokens)},
                                  {uint64_t(head_stride) * sizeof(T), uint64_t(row_stride) * sizeof(T)},
                                  {128 / sizeof(T), 1, uint32_t(box_rows)}});
}

template <class Shape>
bool launch_shape(const FlashAttentionParams& p, void* stream) {
  using T = typename Shape::T;
  static_assert(Shape::kSharedBytes <= 227 << 10, "more shared memory than a block may have");
  FlashAttentionSm90Params params = {};
  params.call = p;
  // Without keys nothing is copied, but maps must describe something.
  const bool no_keys = p.tokens_k == 0;
  const bool made = make_map<T>(params.query_map, p.query, p.head_dim, p.heads, p.query_head, p.tokens_q,
                                p.query_row, Shape::kGroupRows) &&
                    make_map<T>(params.key_map, no_keys ? p.query : p.key, p.head_dim, p.kv_heads, p.key_head,
                                no_keys ? 1 : p.tokens_k, p.key_row, Shape::kBlockN) &&
                    make_map<T>(params.value_map, no_keys ? p.query : p.value, p.value_dim, p.kv_heads,
                                p.value_head, no_keys ? 1 : p.tokens_k, p.value_row, Shape::kBlockN);
  const int64_t tiles = max_query_tiles(p.tokens_q, p.batch, Shape::kBlockM);
  if (!made || tiles * p.heads > (1 << 30)) return false;

  // Heads whose keys and values fill half of L2 are read at one time; the rest is for everything else.
  const int64_t bytes_of_head =
      std::max<int64_t>(p.tokens_k, 1) * (p.head_dim + p.value_dim) * int64_t(sizeof(T));
  const int64_t kv_heads_at_once = std::clamp<int64_t>(device().l2_bytes / 2 / bytes_of_head, 1, p.kv_heads);
  params.order = {int(tiles), p.heads, int(kv_heads_at_once) * (p.heads / p.kv_heads)};
  const int blocks = std::min(device().sm_count, params.order.items());
  ptx::launch(flash_attention_sm90_kernel<Shape>, dim3(unsigned(blocks)), dim3(Shape::kThreads),
              Shape::kSharedBytes, stream, params);
  return true;
}

}  // namespace

bool launch_flash_attention_sm90(const FlashAttentionParams& p, DType type, DType, void* stream) {
  if (type != kFloat16 && type != kBFloat16) return false;
  const bool maps_scores = p.mask.softcap > 0.f || p.mask.alibi_slopes != nullptr || p.bias != nullptr;
  bool launched = false;
  dispatch_half(type, [&](auto tag) {
    dispatch_head_size(std::max(p.head_dim, p.value_dim), [&](auto size) {
      using T = typename decltype(tag)::type;
      constexpr int D = decltype(size)::value;
      if constexpr (D == 64)
        if (!maps_scores) return void(launched = launch_shape<ShapeOf<T, D, false>>(p, stream));
      launched = launch_shape<ShapeOf<T, D, true>>(p, stream);
    });
  });
  return launched;
}

}  // namespace slipway
#endif
