"""Greedy decoding over the packed contract, the plainest way: what a test drives a graph with.

The steps are made awkward on purpose: ragged prompts, chunked prefill beside decode, requests that join late,
blocks in shuffled order. Numpy only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from model_repo.runtime import contract
from model_repo.runtime.cross_attention import cross_key, cross_value

Arrays = Mapping[str, npt.NDArray[Any]]
Step = Callable[[Arrays], Arrays]
"""Contract inputs by name -> `logits` and the pools, by output name."""


@dataclass(frozen=True)
class Schedule:
    """How requests are cut into steps. `chunk`: most new tokens of a request in a step, None: all of them."""

    block_size: int = 8
    num_blocks: int = 64
    chunk: int | None = 13
    join: Mapping[int, int] = field(default_factory=lambda: {3: 1, 4: 3})  # request -> its first step
    padding_rows: int = 0


@dataclass(frozen=True)
class Source:
    """What an encoder gave for one request: its outputs by name, each [1, positions, kv_heads, size]."""

    outputs: Arrays

    @property
    def num_positions(self) -> int:
        """Positions that the request's tokens attend to."""
        return int(next(iter(self.outputs.values())).shape[1])


@dataclass
class Generated:
    """What one request got: token ids, and the logits that each was chosen from ([vocab] each)."""

    tokens: list[int]
    logits: list[npt.NDArray[np.float32]]


class _Request:
    def __init__(self, prompt: Sequence[int], source: Source | None = None) -> None:
        self.source = source
        self.source_blocks: list[int] = []
        self.tokens = list(prompt)
        self.cached = 0
        self.blocks: list[int] = []
        self.generated = Generated([], [])


def generate(
    step: Step,
    kv: Sequence[contract.KVSpec],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    schedule: Schedule | None = None,
    change: Callable[[dict[str, npt.NDArray[Any]]], None] | None = None,
    sources: Sequence[Source] = (),
) -> list[Generated]:
    """Decodes all prompts greedily to `new_tokens` each. `change` may spoil the inputs of each step.

    `sources`: one a prompt, for decoders with cross-attention.
    """
    schedule = schedule or Schedule()
    free = list(np.random.default_rng(0).permutation(schedule.num_blocks))
    pools = _empty_pools(kv, schedule)
    requests = [_Request(prompt, source) for prompt, source in itertools.zip_longest(prompts, sources)]
    if sources:
        _write_sources(requests, kv, pools, schedule)
    number = 0
    while any(len(request.generated.tokens) < new_tokens for request in requests):
        active = [
            request
            for index, request in enumerate(requests)
            if number >= schedule.join.get(index, 0) and len(request.generated.tokens) < new_tokens
        ]
        feed, chosen = _inputs(active, schedule, free)
        feed |= pools
        if change is not None:
            change(feed)
        outputs = step(feed)
        for layer in range(len(kv)):
            pools[contract.key_cache(layer)] = outputs[contract.key_cache_out(layer)]
            pools[contract.value_cache(layer)] = outputs[contract.value_cache_out(layer)]
        for request, logits in zip(chosen, outputs["logits"], strict=False):  # nobody's row: none was chosen
            token = int(logits.argmax())
            request.tokens.append(token)
            request.generated.tokens.append(token)
            request.generated.logits.append(logits)
        number += 1
    return [request.generated for request in requests]


OTHER_BLOCKS = 3
"""Blocks that the pools of cross-attention have beyond those of self-attention."""


def _write_sources(
    requests: Sequence[_Request],
    kv: Sequence[contract.KVSpec],
    pools: Mapping[str, npt.NDArray[Any]],
    schedule: Schedule,
) -> None:
    """Every request's encoder output into blocks of its own, in shuffled order."""
    free = np.random.default_rng(1).permutation(schedule.num_blocks + OTHER_BLOCKS).tolist()
    size = schedule.block_size
    for request in requests:
        assert request.source is not None
        positions = np.arange(request.source.num_positions)
        request.source_blocks = [free.pop() for _ in range(-(-len(positions) // size))]
        blocks = np.array(request.source_blocks)[positions // size]
        for layer in (layer for layer, spec in enumerate(kv) if spec.group == contract.CROSS):
            for pool, name in (
                (contract.key_cache(layer), cross_key(layer)),
                (contract.value_cache(layer), cross_value(layer)),
            ):
                pools[pool][blocks, positions % size] = request.source.outputs[name][0]


def _cross_inputs(
    active: Sequence[_Request], starts: Sequence[int], padding_rows: int
) -> dict[str, npt.NDArray[Any]]:
    """`contract.CROSS_INPUTS` of one step: every token is a sequence of its own."""
    lengths = np.diff(starts)
    used, width = starts[-1], max(len(request.source_blocks) for request in active) + 1
    tokens = used + padding_rows
    table = np.full((tokens, width), -1, np.int32)
    past = np.zeros(tokens, np.int32)
    for request, start, length in zip(active, starts, lengths, strict=False):
        assert request.source is not None
        table[start : start + length, : len(request.source_blocks)] = request.source_blocks
        past[start : start + length] = request.source.num_positions - 1
    return {
        "cu_seqlens_1": np.minimum(np.arange(tokens + 1, dtype=np.int32), np.int32(used)),
        "past_lens_1": past,
        "block_table_1": table,
        "slot_mapping_1": np.full(tokens, -1, np.int32),
    }


def _empty_pools(kv: Sequence[contract.KVSpec], schedule: Schedule) -> dict[str, npt.NDArray[Any]]:
    pools = {}
    for layer, spec in enumerate(kv):
        blocks = schedule.num_blocks + (OTHER_BLOCKS if spec.group == contract.CROSS else 0)
        shape = (blocks, schedule.block_size, spec.kv_heads)
        pools[contract.key_cache(layer)] = np.zeros((*shape, spec.key_dim), np.float32)
        pools[contract.value_cache(layer)] = np.zeros((*shape, spec.value_dim), np.float32)
    return pools


def _inputs(
    active: Sequence[_Request], schedule: Schedule, free: list[int]
) -> tuple[dict[str, npt.NDArray[Any]], list[_Request]]:
    """The step tensors of one step, and the requests whose logits rows they ask for, in order."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts = [0]
    past: list[int] = []
    rows: list[int] = []
    chosen: list[_Request] = []
    size = schedule.block_size
    for request in active:
        todo = len(request.tokens) - request.cached
        taken = min(todo, schedule.chunk or todo)
        past.append(request.cached)
        for position in range(request.cached, request.cached + taken):
            if position // size == len(request.blocks):
                request.blocks.append(int(free.pop()))
            ids.append(request.tokens[position])
            positions.append(position)
            slots.append(request.blocks[position // size] * size + position % size)
        request.cached += taken
        starts.append(len(ids))
        if request.cached == len(request.tokens):
            rows.append(len(ids) - 1)
            chosen.append(request)
    if not rows:  # a step that only prefills; its row is thrown away
        rows.append(0)
    width = max(len(request.blocks) for request in active) + 1
    table = np.full((len(active), width), -1, np.int32)
    for row, request in enumerate(active):
        table[row, : len(request.blocks)] = request.blocks
    pad = schedule.padding_rows
    feed = {
        "input_ids": np.array(ids + [0] * pad, np.int32),
        "position_ids": np.array(positions + [0] * pad, np.int32),
        "cu_seqlens": np.array(starts, np.int32),
        "past_lens": np.array(past, np.int32),
        "block_table": table,
        "slot_mapping": np.array(slots + [-1] * pad, np.int32),
        "logits_indices": np.array(rows, np.int32),
    }
    if active[0].source is not None:
        feed |= _cross_inputs(active, starts, pad)
    return feed, chosen
