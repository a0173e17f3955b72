"""What `step_prepare` means: one decode step to the next, sequence by sequence, in ints."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field


class Status(enum.IntEnum):
    """The state of a row of the batch between two steps."""

    EMPTY = 0
    RUNNING = 1
    """Its tokens are in the step; sampled tokens are awaited."""
    WAITING = 2
    """`next_token` waits for a step: the sequence has just joined, or there is no block for it."""
    STOPPED = 3
    EXHAUSTED = 4
    FAILED = 5
    """A negative token was sampled: there was none to choose."""


@dataclass
class Row:
    """One sequence. past_len: tokens in the cache. remaining: tokens that it may still give.

    next_token: its newest token, whose key and value are not in the cache yet. num_sampled: tokens that it has given.
    """

    status: Status
    past_len: int
    remaining: int
    next_token: int
    block_ids: Sequence[int]
    stop_tokens: Sequence[int] = ()
    num_sampled: int = 0


@dataclass
class Step:
    """The decoder contract's tensors of one step, without the padding behind them."""

    input_ids: list[int] = field(default_factory=list)
    position_ids: list[int] = field(default_factory=list)
    slot_mapping: list[int] = field(default_factory=list)
    cu_seqlens: list[int] = field(default_factory=lambda: [0])
    logits_indices: list[int] = field(default_factory=list)


def advance(row: Row, sampled: Sequence[int]) -> int:
    """Gives a running sequence the tokens of the last step, to its end. Returns how many it took.

    A stop token is a token of the sequence, and its last; a negative one is none, and ends it too. Each taken
    token means that one more lies in the cache: the one before it.
    """
    if row.status is not Status.RUNNING:
        return 0
    taken = 0
    row.status = Status.WAITING
    for token in sampled[: row.remaining]:
        if token < 0:
            row.status = Status.FAILED
            break
        taken += 1
        row.next_token = token
        if token in row.stop_tokens:
            row.status = Status.STOPPED
            break
    row.past_len += taken
    row.remaining -= taken
    row.num_sampled += taken
    if row.status is Status.WAITING and row.remaining == 0:
        row.status = Status.EXHAUSTED
    return taken


def slot_of(row: Row, position: int, block_size: int) -> int:
    """block * block_size + offset, or -1 when the sequence has no block for the position."""
    index, offset = divmod(position, block_size)
    if index >= len(row.block_ids) or row.block_ids[index] < 0:
        return -1
    return row.block_ids[index] * block_size + offset


def prepare(rows: Sequence[Row], drafts: Sequence[Sequence[int]], max_drafts: int, block_size: int) -> Step:
    """The next step of the sequences that wait; those which get into it run.

    drafts: guesses of each sequence's tokens after `next_token`, at most `max_drafts`; those beyond `remaining` or
    without a block are left out. A sequence with no block for `next_token` itself keeps waiting and has no tokens.
    logits_indices has 1 + max_drafts entries a sequence: its tokens, the last repeated, or 0 when it has none.
    """
    step = Step()
    for row, guesses in zip(rows, drafts, strict=True):
        begin = len(step.input_ids)
        tokens = [row.next_token, *guesses][: row.remaining] if row.status is Status.WAITING else []
        for position, token in enumerate(tokens, start=row.past_len):
            slot = slot_of(row, position, block_size)
            if slot < 0:
                break
            row.status = Status.RUNNING
            step.input_ids.append(token)
            step.position_ids.append(position)
            step.slot_mapping.append(slot)
        end = len(step.input_ids)
        step.cu_seqlens.append(end)
        step.logits_indices += [min(begin + i, end - 1) if end > begin else 0 for i in range(1 + max_drafts)]
    return step
