"""Attention of encoders in standard operators: every token sees the tokens of its row that its mask shows.

Registered in transformers' attention and mask interfaces under `DENSE`. Where every token sees all others, the mask
is one number a key ([batch, 1, 1, length], 0 or the most negative float32), so it stays small and has no shape
logic of its own; a window is one number a pair of positions ([batch, 1, length, length]).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from .attention import UnsupportedModel

DENSE = "slipway_dense"
_KNOWN_ARGUMENTS = frozenset(
    {
        "deterministic",
        "dropout",
        "output_attentions",
        "output_hidden_states",
        "position_ids",
        "return_dict",
        "sliding_window",  # the mask function of the model says it too, and exactly
        "use_cache",
    }
)
"""Arguments that models pass to attention although they do not change its result."""
_FAR = 1 << 16


def use_dense_attention(model: PreTrainedModel) -> None:
    """Masks of `model` become those of this file; its attention too, where it uses transformers' interface.

    Attention that a model brings itself (MPNet's, DeBERTa's) stays, with the mask added as the model does it: whether
    that gives the same numbers is for `independence.check_independence` to find out.
    """
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(module, PreTrainedModel) and config is not None:
            # Not by set_attn_implementation: it refuses models that use only the mask interface.
            config._attn_implementation = DENSE


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query, key, value [batch, heads, length, size]; returns ([batch, length, heads, size], None).

    position_bias: [1 or batch, heads, length, length], added to the scaled scores before the mask.
    """
    unknown = sorted(
        name
        for name, given in others.items()
        if name not in _KNOWN_ARGUMENTS and given is not None and given is not False
    )
    if getattr(module, "is_causal", False):
        unknown.append("is_causal")
    if unknown or attention_mask is None:
        raise UnsupportedModel(
            f"{type(module).__name__} asks attention for {', '.join(unknown) or 'no mask'}; encoders of the "
            "BERT kind are supported, whose tokens see all tokens that are not padding, or those of a window"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query, key.transpose(2, 3))
    if scale != 1:
        scores = scores * scale
    if position_bias is not None:
        attention_mask = position_bias + attention_mask  # one addition to the scores, as ONNX's Attention has
    return torch.matmul(torch.softmax(scores + attention_mask, dim=-1), value).transpose(1, 2), None


MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""transformers' mask function: (batch, head, query position, key position) -> may the query see the key."""


def _mask(
    *_: Any,
    q_length: int,
    kv_length: int,
    attention_mask: Tensor,
    mask_function: MaskFunction,
    dtype: torch.dtype = torch.float32,
    use_vmap: bool = False,
    **__: Any,
) -> Tensor:
    """transformers' mask interface: attention_mask bool [batch, length] -> additive [batch, 1, 1 or length, length]."""
    near, far = torch.tensor(0), torch.tensor(_FAR)
    sees_later = bool(mask_function(near, near, near, far))
    sees_earlier = bool(mask_function(near, near, far, near))
    if use_vmap or sees_later != sees_earlier:
        raise UnsupportedModel(
            f"the encoder's attention is {'a mask of its own' if use_vmap else 'causal'}; encoders of the BERT kind "
            "are supported, whose tokens see all tokens that are not padding, or those of a window"
        )
    lowest = torch.finfo(dtype).min
    padding = attention_mask[:, None, None, :]
    if sees_later:
        return (1 - padding.to(dtype)) * lowest
    queries, keys = torch.arange(q_length)[None, None, :, None], torch.arange(kv_length)[None, None, None, :]
    visible = mask_function(near, near, queries, keys) & padding.bool()
    # One lowest value, never two added: a row of -inf alone (padding far from any text) would give NaN.
    return (1 - visible.to(dtype)) * lowest


AttentionInterface.register(DENSE, _attention)
AttentionMaskInterface.register(DENSE, _mask)
