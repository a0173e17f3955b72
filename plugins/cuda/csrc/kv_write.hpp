// The launcher of kv_write, for operators that write keys and values as their first phase.
#pragma once
#include "operator.hpp"
#include "slipway/kv_write.cuh"

namespace slipway {

// Enqueues the write on `stream`. new_type: float16, bfloat16 or float32, of the new rows; pool_type: these,
// int8 or float8e4m3. Throws Invalid for sizes and combinations that kv_write does not have; does nothing for
// 0 tokens.
void launch_kv_write(const KvWriteParams& params, DType new_type, DType pool_type, void* stream);

}  // namespace slipway
