#include "flash_attention_launch.hpp"

namespace slipway {

void launch_flash_attention(const FlashAttentionParams& params, DType type, void* stream) {
  dispatch_half(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch_head_size<T, T>(params, stream);
  });
}

}  // namespace slipway
