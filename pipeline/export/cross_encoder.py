"""The encoder of an encoder-decoder, as a graph from one request's input to the keys and values of cross-attention.

What each of the decoder's layers makes of the encoder's output depends on no token of the decoder, so it is computed
once a request and kept in the pools of the KV group CROSS. The layers' own projections are found by running the
decoder on tokens that do not matter and looking at what its attention is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel

from model_repo.runtime.contract import CROSS
from model_repo.runtime.cross_attention import POSITIONS
from model_repo.runtime.tensor_spec import TensorSpec

from .attention import PAGED, AttentionCall, UnsupportedModel, answering
from .dense_attention import ALONE, use_dense_attention
from .head import packed_logits
from .probe import PROBE_TOKENS, LayerSpec

EXAMPLE_POSITIONS = 11
"""Of an input whose length is free; not the number of tokens of any example."""


class CrossEncoder(nn.Module):
    """`layers` as probed: which calls of the decoder's attention are cross-attention. `input_name`: the encoder's."""

    def __init__(self, model: PreTrainedModel, layers: tuple[LayerSpec, ...], input_name: str) -> None:
        super().__init__()
        self.model = model
        self.layers = layers
        self.input_name = input_name

    def forward(self, source: Tensor) -> tuple[Tensor, ...]:
        """One request's input, axis 0 is 1. Returns key and value [1, positions, kv_heads, size] for each
        cross-attention, in the order of the layers."""
        hidden = encode(self.model, self.input_name, source)
        seen = _Seen(self.layers)
        tokens = torch.zeros(PROBE_TOKENS, dtype=torch.int32)
        with answering(seen):
            packed_logits(self.model, tokens, tokens, tokens[:1], encoder_hidden=hidden)
        return tuple(part[None] for part in seen.found)


class _Seen:
    """Keeps keys and values of cross-attention; answers attention with zeros, which lead nowhere."""

    def __init__(self, layers: tuple[LayerSpec, ...]) -> None:
        self.found: list[Tensor] = []
        self._layers = iter(layers)

    def attend(self, call: AttentionCall) -> Tensor:
        """Zeros."""
        spec = next(self._layers)
        if spec.group == CROSS:
            self.found += [call.key, call.value]
        return call.query.new_zeros(call.query.shape[0], spec.heads, spec.value_dim)


def encode(model: PreTrainedModel, input_name: str, source: Tensor) -> Tensor:
    """The encoder's last hidden states [1, positions, hidden] for one request's input; nothing is padded.

    Raises UnsupportedModel when the encoder's attention is not carried.
    """
    with _attending_alone(model):
        result = model.get_encoder()(**{input_name: source}, return_dict=True)
    hidden: Tensor = result.last_hidden_state
    if hidden.dim() != 3 or hidden.shape[0] != 1:
        raise UnsupportedModel(
            f"the encoder of {type(model).__name__} gives hidden states of the shape {list(hidden.shape)} for one "
            "input; [1, positions, hidden] is needed"
        )
    return hidden


@contextmanager
def _attending_alone(model: PreTrainedModel) -> Iterator[None]:
    """Lets all attention of the model be that of a row without padding, for a while."""
    use_dense_attention(model, ALONE)
    try:
        yield
    finally:
        use_dense_attention(model, PAGED)


def example_input(spec: TensorSpec, vocab_size: int) -> Tensor:
    """An input of the encoder: normal numbers, or token ids that are not special."""
    shape = [size if isinstance(size, int) else EXAMPLE_POSITIONS for size in spec.shape]
    generator = torch.Generator().manual_seed(0)
    if spec.dtype.startswith("int"):
        first = min(4, vocab_size - 1)  # ids below may be special tokens
        return torch.randint(first, vocab_size, shape, generator=generator, dtype=getattr(torch, spec.dtype))
    return torch.randn(shape, generator=generator, dtype=getattr(torch, spec.dtype))


def dynamic_axes(spec: TensorSpec, max_positions: int) -> dict[int, Dim]:
    """For torch.export: the axis of the input whose size is free."""
    return {
        axis: Dim(POSITIONS, min=1, max=max_positions)
        for axis, size in enumerate(spec.shape)
        if isinstance(size, str)
    }
