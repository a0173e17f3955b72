#include "paged_attention_form.hpp"

namespace slipway {
template void launch_paged_attention<__half, PoolKind::kInt8>(PagedAttentionParams, void*);
}  // namespace slipway
