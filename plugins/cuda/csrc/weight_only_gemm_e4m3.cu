#include "weight_only_gemm_launch.hpp"

namespace slipway {

void launch_weight_only_e4m3(const WeightOnlyGemmParams& p, DType type, void* stream) {
  launch_rows<WeightFormat::kE4M3, WeightScales::kChannels>(p, type, stream);
}

}  // namespace slipway
