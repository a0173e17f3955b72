"""What `attention_plan` writes: the work list of paged attention, sequence by sequence, item by item.

The layout and the meaning of every field are in `plugins/cuda/include/slipway/attention_plan.cuh`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 64
KEYS = 64
ITEM_COST = 2
SIGNATURE = 0x51770001
HEADER_INTS = 16
UNWRITTEN = -1


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class Limits:
    """What a plan is sized by."""

    batch: int
    tokens: int
    heads: int
    kv_heads: int
    max_length: int
    pool_tokens: int
    window: int = -1
    chunk: int = 512
    max_split_tokens: int = 8
    workers: int = 6

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return self.heads // self.kv_heads

    @property
    def split_tokens(self) -> int:
        """Tokens of split sequences that a step can have."""
        return min(self.tokens, min(self.max_split_tokens, self.tokens) * self.batch)

    @property
    def slots(self) -> int:
        """Partial results that a step can have."""
        split = min(self.max_split_tokens, self.tokens)
        chunks = ceil_div(self.max_length, self.chunk)
        if self.window >= 0:
            chunks = min(chunks, ceil_div(self.window + split, self.chunk) + 1)
        if chunks <= 1:
            return 0
        return min(self.split_tokens * chunks, split * (self.pool_tokens // self.chunk + self.batch))

    @property
    def items(self) -> int:
        """Items that a step can have."""
        split = min(self.max_split_tokens, self.tokens)
        return (
            self.slots * ceil_div(self.group, ROWS)
            + self.batch * (ceil_div(split * self.group, ROWS) + 1)
            + ceil_div(self.tokens * self.group, ROWS)
        )

    @property
    def ints(self) -> int:
        """Elements of the plan."""
        sizes = (8 * self.batch, 8 * self.items, self.tokens, 2 * self.split_tokens, 2 * (self.workers + 1))
        return HEADER_INTS + sum(sizes)


@dataclass
class Planned:
    """One sequence of the step; see AttentionSequence of the header."""

    begin: int
    new: int
    past: int
    split: bool
    first_chunk: int = 0
    chunks: int = 0
    slot: int = -1
    own_chunk: int = 0
    place: int = -1  # `list` of the header
    list_tokens: int = 0
    item: int = 0
    tile: int = 0

    def fields(self) -> list[int]:
        """As it lies in the plan."""
        return [
            self.first_chunk,
            self.chunks,
            self.slot,
            self.own_chunk,
            self.place,
            self.list_tokens,
            self.item,
            self.tile,
        ]


def describe(
    limits: Limits, cu_seqlens: Sequence[int], past_lens: Sequence[int], chunk: int
) -> list[Planned]:
    """The sequences with their chunks."""
    described = []
    for b, past in enumerate(past_lens):
        new = cu_seqlens[b + 1] - cu_seqlens[b]
        sequence = Planned(cu_seqlens[b], new, past, 0 < new <= limits.max_split_tokens)
        if sequence.split:
            end = ceil_div(past + new, chunk)
            seen = max(0, past + 1 - limits.window) if limits.window >= 0 else 0
            sequence.first_chunk = sequence.own_chunk = min(seen // chunk, end - 1)
            sequence.chunks = end - sequence.first_chunk
        described.append(sequence)
    return described


def share_prefixes(
    sequences: list[Planned], leaders: Sequence[int], prefix_lens: Sequence[int], chunk: int
) -> dict[int, list[int]]:
    """Which sequences are computed together, by the first of each group; their shared chunks are set."""
    groups: dict[int, list[int]] = {}
    covered = {}
    for b, sequence in enumerate(sequences):
        whole = sequence.past if leaders[b] == b else min(prefix_lens[b], sequence.past)
        covered[b] = whole // chunk
        if sequence.split and covered[b] > 0:
            groups.setdefault(leaders[b], []).append(b)
    found = {members[0]: members for members in groups.values() if len(members) > 1}
    for first, members in found.items():
        before = 0
        for b in members:
            sequences[b].own_chunk = min(covered[m] for m in members)
            sequences[b].place = before
            sequences[b].list_tokens = -1 - first
            before += sequences[b].new
        sequences[first].list_tokens = before
    return found


def make_plan(
    limits: Limits,
    cu_seqlens: Sequence[int],
    past_lens: Sequence[int],
    prefix_leader: Sequence[int] | None = None,
    prefix_lens: Sequence[int] | None = None,
) -> Tensor:
    """attention_metadata [limits.ints] int32; what the kernel leaves alone is -1."""
    chunk = limits.chunk
    while True:
        sequences = describe(limits, cu_seqlens, past_lens, chunk)
        if sum(s.new * s.chunks for s in sequences if s.chunks > 1) <= limits.slots:
            break
        chunk *= 2
    groups: dict[int, list[int]] = {}
    if prefix_leader is not None and prefix_lens is not None and limits.window < 0:
        groups = share_prefixes(sequences, prefix_leader, prefix_lens, chunk)

    tiles: list[list[int]] = []
    splits: list[list[int]] = []
    merged: list[int] = []
    shared_tokens: list[int] = []
    token_sequence = [UNWRITTEN] * limits.tokens
    slot = 0
    for members in (groups[first] for first in sorted(groups)):
        base = len(shared_tokens)
        for b in members:
            sequences[b].place += base
            shared_tokens += range(sequences[b].begin, sequences[b].begin + sequences[b].new)
    for b, s in enumerate(sequences):
        s.tile, s.item = len(tiles), len(splits)
        token_sequence[s.begin : s.begin + s.new] = [b] * s.new
        rows = s.new * limits.group
        seen = s.past + 1 - limits.window if limits.window >= 0 else 0
        if not s.split:
            for first in range(0, rows, ROWS):
                count = min(ROWS, rows - first)
                end = s.past + (first + count - 1) // limits.group + 1
                begin = max(0, seen + first // limits.group if limits.window >= 0 else 0)
                tiles.append([b, first, count, min(begin, end - 1), end, -1, -1])
            continue
        if s.chunks > 1:
            s.slot = slot
            slot += s.chunks * s.new
            merged += range(s.begin, s.begin + s.new)
        for number in range(s.first_chunk, s.first_chunk + s.chunks):
            shared = number < s.own_chunk
            if shared and b not in groups:
                continue
            total = s.list_tokens * limits.group if shared else rows
            end = min((number + 1) * chunk, s.past + s.new)
            begin = min(max(number * chunk, seen), end - 1)
            for first in range(0, total, ROWS):
                count = min(ROWS, total - first)
                splits.append([b, first, count, begin, end, number, s.place if shared else -1])

    plan = torch.full((limits.ints,), UNWRITTEN, dtype=torch.int32)
    numbers = (SIGNATURE, chunk, len(tiles), len(splits), len(merged), limits.workers)
    header = [*numbers, limits.heads, limits.kv_heads, limits.batch, limits.tokens]
    at = 0

    def put(values: Sequence[int], capacity: int) -> None:
        nonlocal at
        plan[at : at + len(values)] = torch.tensor(list(values), dtype=torch.int32)
        at += capacity

    put([*header, *[0] * (HEADER_INTS - len(header))], HEADER_INTS)
    put([x for s in sequences for x in s.fields()], 8 * limits.batch)
    begins = [deal_out(items, limits) for items in (tiles, splits)]
    put([x for item in (*tiles, *splits) for x in item], 8 * limits.items)
    put(token_sequence, limits.tokens)
    put(merged, limits.split_tokens)
    put(shared_tokens, limits.split_tokens)
    put([*begins[0], *begins[1]], 2 * (limits.workers + 1))
    return plan


def deal_out(items: list[list[int]], limits: Limits) -> list[int]:
    """Appends the cost before it to each item; returns the first unit of each worker, and their number."""
    starts = []  # of each unit
    before = 0
    for item in items:
        cost = ceil_div(item[4], KEYS) - item[3] // KEYS + ITEM_COST
        starts += [before * limits.kv_heads + head * cost for head in range(limits.kv_heads)]
        item.append(before)
        before += cost
    whole = before * limits.kv_heads
    begins = [
        sum(start < ceil_div(whole * worker, limits.workers) for start in starts)
        for worker in range(limits.workers)
    ]
    return [*begins, len(starts)]
