"""How attention gets in: a function for transformers' attention interface that hands each call to a handler.

transformers models look their attention function up by name (`AttentionInterface`). The function registered
here turns the many arguments that families pass into one `AttentionCall`, refuses arguments whose meaning it
does not know, and gives the call to the handler in force. Handlers travel in a context variable, because
some models drop keyword arguments on the way to their attention layers: the probe, the packing check and the
packed wrapper are handlers. No mask function belongs to `PAGED`, so models make no mask under it; `PROBE` is
the same attention function with one, for looking at the masks that a model wants.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from transformers import AttentionInterface

from model_repo.runtime.errors import BadInput

PAGED = "slipway_paged"
PROBE = "slipway_probe"

_WITHOUT_MEANING = frozenset(
    {
        "cache_position",
        "dropout",
        "layer_idx",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)
"""Arguments that models pass through to attention although they do not change its result."""


class UnsupportedModel(BadInput):
    """The model asks for something that the packed graph cannot express; the message says what."""


@dataclass(frozen=True)
class AttentionCall:
    """One call of attention by a layer, for one row of a batch (the packed step).

    query [tokens, heads, key_dim], key [tokens, kv_heads, key_dim], value [tokens, kv_heads, value_dim].
    `window`: w means that a query sees the w last keys, its own included; 0 all of them. `softcap` 0 is off.
    `sink`: [heads], an additional logit of each head's softmax. `mask`: what the model's mask function made.
    `causal`: whether the layer says that a query sees no later key; in decoders, cross-attention says that it does.
    `bias`: [1, heads, tokens, keys], added to the scaled scores.
    """

    module: str
    layer: int | None
    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    window: int
    softcap: float
    sink: Tensor | None
    mask: Tensor | None
    causal: bool
    bias: Tensor | None


class AttentionHandler(Protocol):
    """Whoever answers attention calls while a model runs."""

    def attend(self, call: AttentionCall) -> Tensor:
        """The attention output [tokens, heads, value_dim]. Raises UnsupportedModel."""
        ...


_handler: ContextVar[AttentionHandler] = ContextVar("slipway_attention_handler")


@contextlib.contextmanager
def answering(handler: AttentionHandler) -> Iterator[None]:
    """Lets `handler` answer all attention calls made within the context."""
    token = _handler.set(handler)
    try:
        yield
    finally:
        _handler.reset(token)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    sinks: Tensor | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query, key and value are [1, heads, tokens, size].

    Returns ([1, tokens, heads, value_dim], None). Raises UnsupportedModel.
    """
    name = type(module).__name__
    unknown = sorted(
        key for key, given in others.items() if given is not None and key not in _WITHOUT_MEANING
    )
    if unknown:
        raise UnsupportedModel(
            f"{name} passes {', '.join(unknown)} to attention, whose meaning is not known here; supported "
            "are scale, sliding window, softcap and sinks"
        )
    call = AttentionCall(
        module=name,
        layer=getattr(module, "layer_idx", None),
        query=_rows(query),
        key=_rows(key),
        value=_rows(value),
        scale=float(query.shape[-1] ** -0.5 if scaling is None else scaling),
        window=int(sliding_window or 0),
        softcap=float(softcap or 0.0),
        sink=s_aux if s_aux is not None else sinks,
        mask=attention_mask,
        causal=is_causal is not False and getattr(module, "is_causal", True) is not False,
        bias=position_bias,
    )
    return _handler.get().attend(call)[None], None


def _rows(heads: Tensor) -> Tensor:
    """[1, heads, tokens, size] -> [tokens, heads, size]."""
    return heads.transpose(1, 2)[0]


AttentionInterface.register(PAGED, _attention)
AttentionInterface.register(PROBE, _attention)
