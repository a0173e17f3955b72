#include "paged_attention_form.hpp"

namespace slipway {
template void launch_paged_attention<__nv_bfloat16, PoolKind::kE4M3>(PagedAttentionParams, void*);
}  // namespace slipway
