// flash_attention with mma.sync for float16 and bfloat16: the shapes that are compiled.
#include "flash_attention_launch.hpp"

namespace slipway {
namespace {

// Tiles as large as registers allow without spilling (255 a thread), and shared memory for two blocks on
// every multiprocessor with 100 KB or more (head size 256: 128 KB).
template <class T>
struct Shapes {
  template <int D>
  using Of = FlashAttentionShape<T, T, D, D == 256 ? 1 : 2, D == 64 ? 64 : 32>;
};

}  // namespace

void launch_flash_attention(const FlashAttentionParams& params, DType type, void* stream) {
  dispatch_half(type, [&](auto tag) {
    launch_head_size<Shapes<typename decltype(tag)::type>::template Of>(params, stream);
  });
}

}  // namespace slipway
