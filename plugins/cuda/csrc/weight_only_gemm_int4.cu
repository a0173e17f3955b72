#include "weight_only_gemm_launch.hpp"

namespace slipway {

void launch_weight_only_int4(const WeightOnlyGemmParams& p, DType type, int group, void* stream) {
  if (group == 32) launch_rows<WeightFormat::kInt4, WeightScales::kGroups32>(p, type, stream);
  else launch_rows<WeightFormat::kInt4, WeightScales::kGroups>(p, type, stream);
}

}  // namespace slipway
