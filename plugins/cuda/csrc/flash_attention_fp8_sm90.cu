// flash_attention for E4M3 in its form for sm_90a: the shapes that are compiled.
#ifdef SLIPWAY_ARCH_90A  // emulated builds leave it out unless they ask for it
#include "flash_attention_sm90_launch.hpp"

namespace slipway {
namespace {

// Two stages of keys and of values, as they are loaded and transposed, fit beside the queries. Tiles of keys
// are as large as the registers of a consumer allow.
template <class Out, int D, bool MapsScores>
using ShapeOf = FlashAttentionSm90Shape<e4m3, Out, D, D == 64 && !MapsScores ? 3 : 2,
                                        D == 256                 ? 96
                                        : D == 64 && !MapsScores ? 128
                                                                 : 160,
                                        D != 64 || MapsScores>;

}  // namespace

bool launch_flash_attention_fp8_sm90(const FlashAttentionParams& params, DType output, void* stream) {
  return launch_sm90<ShapeOf>(params, output, stream);
}

}  // namespace slipway
#endif
