// The forms of paged attention: by type of query and output, and kind of pool. Each is compiled in a unit of its own.
#pragma once
#include "slipway/paged_attention_params.cuh"

namespace slipway {

// Attention by a plan, then the merge of partial results. T: __half or __nv_bfloat16. `stages` of the parameters is
// chosen here. Throws Unsupported when the device has too little shared memory.
template <class T, PoolKind Kind>
void launch_paged_attention(PagedAttentionParams params, void* stream);

}  // namespace slipway
