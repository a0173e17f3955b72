"""The torch operator `slipway::paged_attention`: schema, shape function and reference body.

Models call it through transformers' attention interface; the export translates it to one
`slipway::PagedAttention` node. It is functional: the pools come back with the new rows written, and the
inputs stay as they were. On CUDA tensors it runs the kernel of plugins/cuda (see `plugins.torch_cuda` for all others).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import paged_attention as reference

paged_attention = torch.library.custom_op(
    "slipway::paged_attention",
    reference.paged_attention,
    mutates_args=(),
    # That of the reference without its defaults: torch leaves arguments that equal one out of exported graphs.
    schema="(Tensor query, Tensor key, Tensor value, Tensor key_cache, Tensor value_cache, Tensor cu_seqlens, "
    "Tensor past_lens, Tensor block_table, Tensor slot_mapping, Tensor? head_sink, Tensor? alibi_slopes, "
    "Tensor? distance_bias, float scale, float softcap, SymInt local_window_size) -> (Tensor, Tensor, Tensor)",
)
"""Attention of packed tokens through a block table; see `plugins.reference.paged_attention.paged_attention`."""


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

    return torch_cuda.paged_attention(torch_cuda.library(), *arguments)
