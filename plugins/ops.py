"""The torch operator `slipway::paged_attention`: schema, shape function and reference body.

Models call it through transformers' attention interface; the export translates it to one
`slipway::PagedAttention` node. It is functional: the pools come back with the new rows written, and the
inputs stay as they were. On CUDA tensors it runs the kernel of plugins/cuda (see `plugins.torch_cuda` for all others).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import paged_attention as reference


@torch.library.custom_op("slipway::paged_attention", mutates_args=())
def paged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cu_seqlens: Tensor,
    past_lens: Tensor,
    block_table: Tensor,
    slot_mapping: Tensor,
    head_sink: Tensor | None,
    alibi_slopes: Tensor | None,
    scale: float,
    softcap: float,
    local_window_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of packed tokens through a block table; see `plugins.schemas.PAGED_ATTENTION`.

    query [tokens, heads, head_dim], key [tokens, kv_heads, head_dim], value [tokens, kv_heads, value_dim],
    pools [num_blocks, block_size, kv_heads, size]. Returns (output [tokens, heads, value_dim] in query's
    dtype, key pool, value pool). scale 0 means 1 / sqrt(head_dim), softcap 0 off, local_window_size -1 off.
    """
    return reference.paged_attention(
        query,
        key,
        value,
        key_cache,
        value_cache,
        cu_seqlens,
        past_lens,
        block_table,
        slot_mapping,
        head_sink=head_sink,
        alibi_slopes=alibi_slopes,
        scale=scale,
        softcap=softcap,
        local_window_size=local_window_size,
    )


@paged_attention.register_fake
def _paged_attention_shapes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    *_: Tensor | float | int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    output = query.new_empty(query.shape[0], query.shape[1], value.shape[2])
    return output, torch.empty_like(key_cache), torch.empty_like(value_cache)


@paged_attention.register_kernel("cuda")
def _paged_attention_on_cuda(
    *arguments: Tensor | float | int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    from . import torch_cuda

    return torch_cuda.paged_attention(torch_cuda.library(), *arguments)  # type: ignore[arg-type]
