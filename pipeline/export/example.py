"""The example step that torch.export traces a decoder with, and which of its sizes are dynamic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim

from model_repo.runtime.contract import CROSS

from .probe import LayerSpec

_BLOCK_SIZE = 8
_NUM_BLOCKS = 13
_MAX_BLOCKS = 4
_PAST_LENS = (0, 8, 2)
_NEW_TOKENS = (5, 1, 6)
_LOGITS_ROWS = (4, 11)
_VOCABULARY_START = 4  # ids below may be special tokens
_CROSS_BLOCKS = 17
_MAX_CROSS_BLOCKS = 2


class ExampleStep(NamedTuple):
    """Arguments of the wrapper's forward (see `packed.py`), and the dynamic dimensions of each."""

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
    groups = [layer.group for layer in layers for _ in range(2)]
    pools = [
        torch.zeros(_CROSS_BLOCKS if layer.group == CROSS else _NUM_BLOCKS, _BLOCK_SIZE, layer.kv_heads, size)
        for layer in layers
        for size in (layer.key_dim, layer.value_dim)
    ]
    tokens = starts[-1]
    cross = _cross_step(tokens) if CROSS in groups else ()
    arguments = (
        torch.arange(_VOCABULARY_START, _VOCABULARY_START + tokens, dtype=torch.int32),
        _int32(positions),
        _int32(starts),
        _int32(_PAST_LENS),
        block_table,
        _int32(slots),
        _int32(_LOGITS_ROWS),
        *cross,
        pools,
    )
    return ExampleStep(arguments, _dynamic_shapes(groups))


_EMBED_ROWS = 9
_EMBED_INDEX = (-1, 4, -1, 0, 8, -1, -1, 3, -1, -1, 2, -1)


def with_embeds(step: ExampleStep, hidden_size: int) -> ExampleStep:
    """The step of `PackedEmbedDecoder`: some of its tokens get rows of images."""
    rows = Dim("rows", min=1, max=1 << 20)
    tokens = step.dynamic_shapes[0][0]
    *arguments, pools = step.arguments
    *shapes, pool_shapes = step.dynamic_shapes
    embeds = (torch.zeros(_EMBED_ROWS, hidden_size), _int32(_EMBED_INDEX))
    return ExampleStep((*arguments, *embeds, pools), (*shapes, {0: rows}, {0: tokens}, pool_shapes))


def _cross_step(tokens: int) -> tuple[Tensor, ...]:
    """`contract.CROSS_INPUTS`: one encoder output of a block and a bit, which every token attends to."""
    return (
        torch.arange(tokens + 1, dtype=torch.int32),
        torch.full((tokens,), _BLOCK_SIZE, dtype=torch.int32),
        torch.arange(_MAX_CROSS_BLOCKS, dtype=torch.int32).repeat(tokens, 1),
        torch.full((tokens,), -1, dtype=torch.int32),
    )


def _dynamic_shapes(pool_groups: Sequence[int]) -> tuple[Any, ...]:
    """One dimension map for each argument of the step; `pool_groups`: the KV group of each pool."""
    tokens, batch = Dim("tokens", min=1, max=1 << 20), Dim("batch", min=1, max=1 << 16)
    max_blocks, selected = Dim("max_blocks", min=1, max=1 << 20), Dim("selected", min=1, max=1 << 20)
    num_blocks, block_size = Dim("num_blocks", min=1, max=1 << 24), Dim("block_size", min=1, max=1 << 16)
    num_cross, max_cross = Dim("num_blocks_1", min=1, max=1 << 24), Dim("max_blocks_1", min=1, max=1 << 20)
    cross = ({0: tokens + 1}, {0: tokens}, {0: tokens, 1: max_cross}, {0: tokens})
    return (
        {0: tokens},
        {0: tokens},
        {0: batch + 1},
        {0: batch},
        {0: batch, 1: max_blocks},
        {0: tokens},
        {0: selected},
        *(cross if CROSS in pool_groups else ()),
        [{0: num_cross if group == CROSS else num_blocks, 1: block_size} for group in pool_groups],
    )


def _int32(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
