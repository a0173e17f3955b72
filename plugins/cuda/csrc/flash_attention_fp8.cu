#include "flash_attention_launch.hpp"

namespace slipway {

void launch_flash_attention_fp8(const FlashAttentionParams& params, DType output, void* stream) {
  dispatch_half(output,
                [&](auto tag) { launch_head_size<e4m3, typename decltype(tag)::type>(params, stream); });
}

}  // namespace slipway
