"""Attention of encoders in standard operators: every token sees all tokens of its row that are not padding.

Registered in transformers' attention and mask interfaces under `DENSE`. The mask is one number a key
([batch, 1, 1, length], 0 or the most negative float32), so it stays small and has no shape logic of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from .attention import UnsupportedModel

DENSE = "slipway_dense"
_KNOWN_ARGUMENTS = frozenset({"dropout", "output_attentions", "is_causal", "position_ids", "use_cache"})
_FAR = 1 << 16


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query, key, value [batch, heads, length, size]; returns ([batch, length, heads, size], None)."""
    unknown = sorted(name for name, given in others.items() if given and name not in _KNOWN_ARGUMENTS)
    if others.get("is_causal") or getattr(module, "is_causal", False):
        unknown.append("is_causal")
    if unknown or attention_mask is None:
        raise UnsupportedModel(
            f"{type(module).__name__} asks attention for {', '.join(unknown) or 'no mask'}; encoders of the "
            "BERT kind, whose tokens see all tokens that are not padding, are supported"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query, key.transpose(2, 3)) * scale + attention_mask
    return torch.matmul(torch.softmax(scores, dim=-1), value).transpose(1, 2), None


def _padding_mask(
    *_: Any,
    attention_mask: Tensor,
    mask_function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor | bool],
    dtype: torch.dtype = torch.float32,
    **__: Any,
) -> Tensor:
    """transformers' mask interface: attention_mask bool [batch, length] -> additive [batch, 1, 1, length]."""
    zero, far = torch.tensor(0), torch.tensor(_FAR)
    for query, key in ((zero, far), (far, zero)):
        if not bool(torch.as_tensor(mask_function(zero, zero, query, key))):
            raise UnsupportedModel(
                "the encoder's attention is causal or has a window; encoders of the BERT kind, whose tokens "
                "see all tokens that are not padding, are supported"
            )
    return (1 - attention_mask.to(dtype))[:, None, None, :] * torch.finfo(dtype).min


AttentionInterface.register(DENSE, _attention)
AttentionMaskInterface.register(DENSE, _padding_mask)
