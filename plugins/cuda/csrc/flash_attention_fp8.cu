// flash_attention with mma.sync for E4M3: the shapes that are compiled.
#include "device.hpp"
#include "flash_attention_launch.hpp"

namespace slipway {
namespace {

template <class Out>
struct Shapes {
  template <int D>
  using Native = FlashAttentionShape<e4m3, Out, D, D == 256 ? 1 : 2, D == 128 ? 32 : 64>;
  template <int D>
  using Converted = FlashAttentionShape<e4m3, Out, D, 1, D == 256 ? 32 : 64, true>;
};

}  // namespace

void launch_flash_attention_fp8(const FlashAttentionParams& params, DType output, void* stream) {
  const int chip = device().compute_capability;
  dispatch_half(output, [&](auto tag) {
    using Out = typename decltype(tag)::type;
    if (chip >= 90 && chip < 120)
      launch_head_size<Shapes<Out>::template Converted>(params, stream);
    else
      launch_head_size<Shapes<Out>::template Native>(params, stream);
  });
}

}  // namespace slipway
