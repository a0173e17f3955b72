"""The example step that torch.export traces a decoder with, and which of its sizes are dynamic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim

from .probe import LayerSpec

_BLOCK_SIZE = 8
_NUM_BLOCKS = 13
_MAX_BLOCKS = 4
_PAST_LENS = (0, 8, 2)
_NEW_TOKENS = (5, 1, 6)
_LOGITS_ROWS = (4, 11)
_VOCABULARY_START = 4  # ids below may be special tokens


class ExampleStep(NamedTuple):
    """Arguments of `PackedDecoder.forward`, and the dynamic dimensions of each."""

    arguments: tuple[Any, ...]
    dynamic_shapes: tuple[Any, ...]


def example_step(layers: Sequence[LayerSpec]) -> ExampleStep:
    """Two prefills and one decode in one step.

    No two dynamic sizes are equal and none is 0 or 1: the exporter would take them for the same or fixed.
    """
    batch = len(_NEW_TOKENS)
    block_table = torch.arange(batch * _MAX_BLOCKS, dtype=torch.int32).view(batch, _MAX_BLOCKS)
    positions: list[int] = []
    slots: list[int] = []
    starts = [0]
    for sequence, (past, new) in enumerate(zip(_PAST_LENS, _NEW_TOKENS, strict=True)):
        starts.append(starts[-1] + new)
        for position in range(past, past + new):
            block = int(block_table[sequence, position // _BLOCK_SIZE])
            positions.append(position)
            slots.append(block * _BLOCK_SIZE + position % _BLOCK_SIZE)
    pools = [
        torch.zeros(_NUM_BLOCKS, _BLOCK_SIZE, layer.kv_heads, size)
        for layer in layers
        for size in (layer.key_dim, layer.value_dim)
    ]
    tokens = starts[-1]
    arguments = (
        torch.arange(_VOCABULARY_START, _VOCABULARY_START + tokens, dtype=torch.int32),
        _int32(positions),
        _int32(starts),
        _int32(_PAST_LENS),
        block_table,
        _int32(slots),
        _int32(_LOGITS_ROWS),
        pools,
    )
    return ExampleStep(arguments, _dynamic_shapes(len(pools)))


def _dynamic_shapes(num_pools: int) -> tuple[Any, ...]:
    """One dimension map for each argument of the step."""
    tokens, batch = Dim("tokens", min=1, max=1 << 20), Dim("batch", min=1, max=1 << 16)
    max_blocks, selected = Dim("max_blocks", min=1, max=1 << 20), Dim("selected", min=1, max=1 << 20)
    num_blocks, block_size = Dim("num_blocks", min=1, max=1 << 24), Dim("block_size", min=1, max=1 << 16)
    return (
        {0: tokens},
        {0: tokens},
        {0: batch + 1},
        {0: batch},
        {0: batch, 1: max_blocks},
        {0: tokens},
        {0: selected},
        [{0: num_blocks, 1: block_size}] * num_pools,
    )


def _int32(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
