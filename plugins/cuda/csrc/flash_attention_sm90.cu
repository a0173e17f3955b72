// flash_attention for float16 and bfloat16 in its form for sm_90a: the shapes that are compiled.
#ifdef SLIPWAY_ARCH_90A  // emulated builds leave it out unless they ask for it
#include "flash_attention_sm90_launch.hpp"

namespace slipway {
namespace {

// Two stages of keys and values fit beside the queries. Three consumers have 160 registers each: enough for
// heads of 64 and tiles of 112 keys, without softcap, ALiBi and bias.
template <class T, int D, bool MapsScores>
using ShapeOf = FlashAttentionSm90Shape<T, T, D, D == 64 && !MapsScores ? 3 : 2,
                                        D == 256                 ? 80
                                        : D == 64 && !MapsScores ? 112
                                                                 : 128,
                                        D != 64 || MapsScores>;

}  // namespace

bool launch_flash_attention_sm90(const FlashAttentionParams& params, DType type, void* stream) {
  return launch_sm90<ShapeOf>(params, type, stream);
}

}  // namespace slipway
#endif
