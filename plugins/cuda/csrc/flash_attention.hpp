// The forms of flash_attention. All take the same parameters, checked; all throw CudaError when a launch
// fails.
#pragma once
#include "operator.hpp"
#include "slipway/flash_attention_params.cuh"

namespace slipway {

// mma.sync and cp.async, every chip from sm_80 on. `type`: float16 or bfloat16, of query, key, value and
// output.
void launch_flash_attention(const FlashAttentionParams& params, DType type, void* stream);

// The same with E4M3 inputs, from sm_89 on. `output`: float16 or bfloat16.
void launch_flash_attention_fp8(const FlashAttentionParams& params, DType output, void* stream);

// TMA and WGMMA, sm_90a only. `type`, `output`: as above. False: this form does not cover such a call, and
// nothing was launched.
bool launch_flash_attention_sm90(const FlashAttentionParams& params, DType type, void* stream);
bool launch_flash_attention_fp8_sm90(const FlashAttentionParams& params, DType output, void* stream);

}  // namespace slipway
