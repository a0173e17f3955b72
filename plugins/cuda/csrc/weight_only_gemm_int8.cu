#include "weight_only_gemm_launch.hpp"

namespace slipway {

void launch_weight_only_int8(const WeightOnlyGemmParams& p, DType type, void* stream) {
  if (p.groups > 0) launch_rows<WeightFormat::kInt8, WeightScales::kGroups>(p, type, stream);
  else launch_rows<WeightFormat::kInt8, WeightScales::kChannels>(p, type, stream);
}

}  // namespace slipway
