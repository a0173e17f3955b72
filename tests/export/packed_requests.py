"""Greedy decoding over the packed contract, the plainest way: what a test drives a graph with.

The steps are made awkward on purpose: ragged prompts, chunked prefill beside decode, requests that join late,
blocks in shuffled order. Numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from model_repo.runtime import contract

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


@dataclass
class Generated:
    """What one request got: token ids, and the logits that each was chosen from ([vocab] each)."""

    tokens: list[int]
    logits: list[npt.NDArray[np.float32]]


class _Request:
    def __init__(self, prompt: Sequence[int]) -> None:
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
) -> list[Generated]:
    """Decodes all prompts greedily to `new_tokens` each. `change` may spoil the inputs of each step."""
    schedule = schedule or Schedule()
    free = list(np.random.default_rng(0).permutation(schedule.num_blocks))
    pools = _empty_pools(kv, schedule)
    requests = [_Request(prompt) for prompt in prompts]
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


def _empty_pools(kv: Sequence[contract.KVSpec], schedule: Schedule) -> dict[str, npt.NDArray[Any]]:
    pools = {}
    for layer, spec in enumerate(kv):
        shape = (schedule.num_blocks, schedule.block_size, spec.kv_heads)
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
    return feed, chosen
