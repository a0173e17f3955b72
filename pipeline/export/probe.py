"""The probe: what each layer of a decoder asks of attention, found by running four tokens through it.

The window is read from the mask that the model wants, not only from the argument it passes: some families
(qwen2_moe, phimoe) slide by their mask alone. The mask is taken as transformers' mask function and bisected,
which also finds masks of other shapes (chunked, bidirectional), and refuses them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionMaskInterface, PreTrainedModel

from model_repo.runtime.contract import CROSS, KVSpec

from .attention import PAGED, PROBE, AttentionCall, UnsupportedModel, answering
from .distance_bias import distance_biases
from .head import packed_logits

PROBE_TOKENS = 4
MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor | bool]
"""transformers' mask function: (batch, head, query position, key position) -> may the query see the key."""


@dataclass(frozen=True)
class LayerSpec:
    """What one call of attention asks for. `window` 0: the whole past; `softcap` 0: off.

    `group`: 0 for self-attention, CROSS where the encoder's output is attended to. `distance_bias` [heads, distances]:
    see `distance_biases`.
    """

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    scale: float
    window: int
    softcap: float
    has_sink: bool
    group: int = 0
    distance_bias: Tensor | None = field(default=None, compare=False)

    def kv(self, dtype: str) -> KVSpec:
        """What the layer keeps for each token, with pools of `dtype`."""
        return KVSpec(self.group, self.kv_heads, self.key_dim, self.value_dim, self.window, dtype)


def probe(
    model: PreTrainedModel, encoder_hidden: Tensor | None = None, max_length: int | None = None
) -> tuple[LayerSpec, ...]:
    """The layers' needs, in layer order; the model is left under paged attention.

    With `encoder_hidden` [1, positions, hidden], what the encoder gave (positions not PROBE_TOKENS), those of the
    decoder's calls of attention, in the order in which they come: self- and cross-attention of a layer count apart.
    They may have relative positions, which are read for sequences of up to `max_length` tokens.
    Raises UnsupportedModel when the model does not use the attention interface, when a layer keeps other
    state than keys and values, or when it wants a mask that is neither causal nor a sliding window.
    """
    _set_attention(model, PROBE)
    recorder = _Recorder(None if encoder_hidden is None else encoder_hidden.shape[1], max_length is not None)
    AttentionMaskInterface.register(PROBE, recorder.make_mask)
    device = next(model.parameters()).device
    try:
        with answering(recorder), torch.no_grad():
            packed_logits(
                model,
                torch.arange(PROBE_TOKENS, dtype=torch.int32, device=device),
                None,
                torch.tensor([PROBE_TOKENS - 1], dtype=torch.int32, device=device),
                attention_mask=torch.ones(PROBE_TOKENS, dtype=torch.int64, device=device),
                encoder_hidden=encoder_hidden,
            )
    finally:
        _set_attention(model, PAGED)
    name, layers = type(model).__name__, recorder.layers
    if encoder_hidden is not None:
        calls = _decoder_calls(name, layers)
        if max_length is None or not recorder.biased:
            return calls
        tables = distance_biases(model, max_length, encoder_hidden)
        return tuple(replace(spec, distance_bias=table) for spec, table in zip(calls, tables, strict=True))
    expected = getattr(model.config.get_text_config(), "num_hidden_layers", len(layers))
    if sorted(layers) != list(range(expected)):
        missing = sorted(set(range(expected)) - set(layers))
        raise UnsupportedModel(
            f"{name} has {expected} layers, but layers {missing} never call attention (they keep other "
            "state, or do not use the attention interface); supported are decoders made of attention layers"
        )
    return tuple(spec for _, spec in sorted(layers.items()))


def _decoder_calls(name: str, calls: Mapping[int, LayerSpec]) -> tuple[LayerSpec, ...]:
    """All calls in order. Raises UnsupportedModel unless there are both kinds."""
    if not {0, CROSS}.issubset(spec.group for spec in calls.values()):
        raise UnsupportedModel(
            f"{name} has an encoder, but its decoder's layers do not call attention once for their own tokens and once "
            "for the encoder's output; supported are encoder-decoders whose decoders do"
        )
    return tuple(calls.values())


def mask_window(visible: MaskFunction, limit: int = 1 << 17) -> int:
    """The window of a mask function: 0 causal without window, w > 0 sliding (the w last keys).

    Raises UnsupportedModel for a mask of any other shape. Windows above `limit` count as none.
    """

    def sees(query: int, key: int) -> bool:
        zero = torch.tensor(0)
        return bool(torch.as_tensor(visible(zero, zero, torch.tensor(query), torch.tensor(key))))

    first, last = 0, limit  # the first key that a query at position `limit` sees lies in first..last
    while first < last:
        middle = (first + last) // 2
        if sees(limit, middle):
            last = middle
        else:
            first = middle + 1
    window = 0 if first == 0 else limit - first + 1
    edge = window or 64
    for query in sorted({0, 1, 2, 3, 7, edge - 1, edge, edge + 1, 3 * edge // 2, 2 * edge - 1, 2 * edge + 3}):
        near = {
            0,
            1,
            query // 2,
            query - 1,
            query,
            query + 1,
            query - edge - 1,
            query - edge,
            query - edge + 1,
        }
        for key in near:
            expected = key <= query and (not window or key > query - window)
            if key >= 0 and sees(query, key) != expected:
                raise UnsupportedModel(
                    f"the attention mask is neither causal nor a sliding window (position {query} "
                    f"{'does not see' if expected else 'sees'} {key}); only those two are supported"
                )
    return window


def _sees_all(visible: MaskFunction) -> bool:
    """Whether every query may see every key, as far as a few of them tell."""
    zero = torch.tensor(0)
    places = [torch.tensor(place) for place in (0, 1, 7, 64, 1 << 16)]
    return all(bool(torch.as_tensor(visible(zero, zero, query, key))) for query in places for key in places)


class _Recorder:
    """Records each layer's needs; answers attention with zeros. `encoder_positions`: None without an encoder.

    `biased`: whether any layer adds a bias to the scores; refused without `takes_bias`.
    """

    def __init__(self, encoder_positions: int | None, takes_bias: bool) -> None:
        self.layers: dict[int, LayerSpec] = {}
        self.biased = False
        self._encoder_positions = encoder_positions
        self._takes_bias = takes_bias
        self._masks: list[tuple[Tensor, MaskFunction]] = []

    def make_mask(
        self, *_: Any, mask_function: MaskFunction, device: torch.device | None = None, **__: Any
    ) -> Tensor:
        """transformers' mask interface: a mask whose function is remembered."""
        mask = torch.zeros(1, 1, PROBE_TOKENS, PROBE_TOKENS, device=device)
        self._masks.append((mask, mask_function))
        return mask

    def attend(self, call: AttentionCall) -> Tensor:
        """Remembers the call's layer."""
        in_order = call.layer is None or self._encoder_positions is not None
        layer = len(self.layers) if in_order or call.layer is None else call.layer
        if layer in self.layers:
            raise UnsupportedModel(f"layer {layer} ({call.module}) calls attention twice; once is supported")
        tokens, heads, key_dim = call.query.shape
        _, kv_heads, value_dim = call.value.shape
        group = self._group(call)
        self.biased |= call.bias is not None
        if self.biased and not self._takes_bias:
            raise UnsupportedModel(
                f"{call.module} adds position_bias to the scores of attention, which is supported in encoder-decoders "
                "(relative positions, as T5 has them); in decoders scale, sliding window, softcap and sinks are"
            )
        self.layers[layer] = LayerSpec(
            heads,
            kv_heads,
            key_dim,
            value_dim,
            call.scale,
            self._window(call),
            call.softcap,
            call.sink is not None,
            group,
        )
        return call.query.new_zeros(tokens, heads, value_dim)

    def _group(self, call: AttentionCall) -> int:
        """Cross-attention is not causal and has as many keys as the encoder has positions."""
        if call.causal and call.key.shape[0] == call.query.shape[0]:
            return 0
        if self._encoder_positions is None or call.key.shape[0] != self._encoder_positions:
            raise UnsupportedModel(
                f"{call.module} attends to later tokens; a decoder whose attention is causal is needed"
            )
        masked = call.mask is not None and not _sees_all(self._function(call))
        if call.causal or masked or call.window or call.value.shape[2] > call.query.shape[2]:
            raise UnsupportedModel(
                f"{call.module} attends to the encoder's output with a mask, a window, causally, or with values wider "
                "than keys; supported is cross-attention to all of its positions"
            )
        return CROSS

    def _window(self, call: AttentionCall) -> int:
        """The mask decides; the argument counts where the model makes no mask."""
        if call.mask is None or not call.causal:
            return call.window
        return mask_window(self._function(call))

    def _function(self, call: AttentionCall) -> MaskFunction:
        """The function behind the call's mask."""
        for mask, function in self._masks:
            if mask is call.mask:
                return function
        raise UnsupportedModel(
            f"{call.module} makes an attention mask of its own; only masks made by transformers' mask "
            "functions can be read"
        )


def _set_attention(model: PreTrainedModel, implementation: str) -> None:
    """Sets the attention implementation, and looks whether it took. Raises UnsupportedModel."""
    name = type(model).__name__
    if model._can_set_attn_implementation():
        model.set_attn_implementation(implementation)
    if model.config.get_text_config()._attn_implementation != implementation:
        raise UnsupportedModel(
            f"{name} does not use transformers' attention interface, so paged attention cannot be put in; "
            "most decoders of the Llama kind (Llama, Mistral, Qwen, Gemma, Phi, ...) do"
        )
