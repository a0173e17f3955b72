"""Attention of encoders in standard operators: every token sees the tokens of its row that its mask shows.

Registered in transformers' attention and mask interfaces under `DENSE`; under `ALONE` for encoders that run one row at
a time, which has no padding and, where every token sees all others, no mask. Elsewhere such a mask is one number a key
([batch, 1, 1, length], 0 or the most negative float32), so it stays small and has no shape logic of its own; a window
is one number a pair of positions ([batch, 1, length, length]).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from .attention import UnsupportedModel

DENSE = "slipway_dense"
ALONE = "slipway_alone"
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


def use_dense_attention(model: PreTrainedModel, implementation: str = DENSE) -> None:
    """Masks of `model` become those of this file; its attention too, where it uses transformers' interface.

    Attention that a model brings itself (MPNet's, DeBERTa's) stays, with the mask added as the model does it: whether
    that gives the same numbers is for `independence.check_independence` to find out.
    """
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(module, PreTrainedModel) and config is not None:
            # Not by set_attn_implementation: it refuses models that use only the mask interface.
            config._attn_implementation = implementation
            config.use_cache = False  # of causal models: their keys and values are nobody's


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
    """query [batch, heads, length, size], key and value of as many heads, or of a head for several of the query's.

    Returns ([batch, length, heads, size], None).

    position_bias: [1 or batch, heads, length, length], added to the scaled scores before the mask.
    """
    unknown = sorted(
        name
        for name, given in others.items()
        if name not in _KNOWN_ARGUMENTS and given is not None and given is not False
    )
    if getattr(module, "is_causal", False) and attention_mask is None:  # a mask says it too
        unknown.append("is_causal")
    # Alone there is no padding; no other row could be told from it without a mask.
    if attention_mask is None and module.config._attn_implementation != ALONE:  # type: ignore[union-attr]
        unknown.append("no mask")
    if unknown:
        raise UnsupportedModel(
            f"{type(module).__name__} asks attention for {', '.join(unknown)}; encoders are supported whose tokens "
            "see all tokens that are not padding, those before them, or those of a window"
        )
    key, value = (_of_each_head(rows, query.shape[1] // key.shape[1]) for rows in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query, key.transpose(2, 3))
    if scale != 1:
        scores = scores * scale
    added = [term for term in (position_bias, attention_mask) if term is not None]
    if added:  # one addition to the scores, as ONNX's Attention has
        scores = scores + (added[0] if len(added) == 1 else added[0] + added[1])
    return torch.matmul(torch.softmax(scores, dim=-1), value).transpose(1, 2), None


def _of_each_head(rows: Tensor, group: int) -> Tensor:
    """Keys or values [batch, kv_heads, length, size] repeated for the `group` query heads of each."""
    if group == 1:
        return rows
    batch, kv_heads, length, size = rows.shape
    return rows[:, :, None].expand(batch, kv_heads, group, length, size).reshape(batch, -1, length, size)


MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""transformers' mask function: (batch, head, query position, key position) -> may the query see the key."""


def _mask(
    *_: Any,
    q_length: int,
    kv_length: int,
    attention_mask: Tensor | None,
    mask_function: MaskFunction,
    dtype: torch.dtype = torch.float32,
    use_vmap: bool = False,
    **__: Any,
) -> Tensor | None:
    """transformers' mask interface: attention_mask bool [batch, length] -> additive [batch, 1, 1 or length, length].

    None where there is no padding (attention_mask None) and every token sees all others.
    """
    near, far = torch.tensor(0), torch.tensor(_FAR)
    sees_later = bool(mask_function(near, near, near, far))
    sees_earlier = bool(mask_function(near, near, far, near))
    if use_vmap:
        raise UnsupportedModel(
            "the encoder's attention is a mask of its own; encoders are supported whose tokens see all tokens that are "
            "not padding, those before them, or those of a window"
        )
    lowest = torch.finfo(dtype).min
    padding = None if attention_mask is None else attention_mask[:, None, None, :]
    if sees_later and sees_earlier:
        return None if padding is None else (1 - padding.to(dtype)) * lowest
    queries, keys = torch.arange(q_length)[None, None, :, None], torch.arange(kv_length)[None, None, None, :]
    visible = mask_function(near, near, queries, keys)
    if padding is not None:
        visible = visible & padding.bool()
    # One lowest value, never two added: a row of -inf alone (padding far from any text) would give NaN.
    return (1 - visible.to(dtype)) * lowest


for _name in (DENSE, ALONE):
    AttentionInterface.register(_name, _attention)
    AttentionMaskInterface.register(_name, _mask)
