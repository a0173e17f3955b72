// The compiled forms of weight_only_gemm, a unit for each format of weights.
#pragma once
#include "dispatch.hpp"
#include "slipway/weight_only_gemm.cuh"

namespace slipway {

void launch_weight_only_int4(const WeightOnlyGemmParams& p, DType type, int group, void* stream);
void launch_weight_only_int8(const WeightOnlyGemmParams& p, DType type, void* stream);
void launch_weight_only_e4m3(const WeightOnlyGemmParams& p, DType type, void* stream);

}  // namespace slipway
