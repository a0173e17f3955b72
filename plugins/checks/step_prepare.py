"""Cases of `step_prepare`: single steps with every state, speculative ones, and padding."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from plugins.cuda.case import Case, Scale
from plugins.reference.step_prepare import Row, Status, advance, prepare

POISON = 1 << 30
"""A token, count or block where nothing may be read."""


def int32(values: Sequence[int] | Sequence[Sequence[int]], *shape: int) -> Tensor:
    """A tensor of int32, of `shape` where one is given."""
    tensor = torch.tensor(values, dtype=torch.int32)
    return tensor.reshape(shape) if shape else tensor


@dataclass
class Call:
    """The rows of a batch before a step, and what the last step gave.

    sampled: of each row, its tokens that count (num_accepted + 1 of `width`); None for rows that did not run.
    drafts: None when the call has no draft_tokens. speculative: num_accepted is given. counted: num_sampled is.
    """

    rows: list[Row]
    sampled: list[list[int] | None]
    drafts: list[list[int]] | None = None
    width: int = 1
    max_drafts: int = 0
    max_blocks: int = 4
    block_size: int = 16
    tokens: int = 0
    stops: int = 0
    speculative: bool = False
    counted: bool = True


def case_of(name: str, call: Call) -> Case:
    """The call and, by the reference, the next step; what must not be read is poison."""
    rows, batch = deepcopy(call.rows), len(call.rows)
    drafts = call.drafts or [[] for _ in rows]
    tokens = max(call.tokens, batch * (1 + call.max_drafts))
    tensors = {
        "sampled": int32([[*(s or []), *[POISON] * call.width][: call.width] for s in call.sampled]).reshape(
            batch, call.width
        ),
        "block_table": int32(
            [[*row.block_ids, *[-1] * call.max_blocks][: call.max_blocks] for row in rows]
        ).reshape(batch, call.max_blocks),
        "status": int32([row.status for row in rows]),
        "past_lens": int32([row.past_len for row in rows]),
        "remaining": int32([row.remaining for row in rows]),
        "next_token": int32([row.next_token for row in rows]),
    }
    if call.counted:
        tensors["num_sampled"] = int32([row.num_sampled for row in rows])
    if call.speculative:
        tensors["num_accepted"] = int32([len(s) - 1 if s else POISON for s in call.sampled])
    if call.drafts is not None:
        padded = [[*d, *([-1] + [POISON] * call.max_drafts)][: call.max_drafts] for d in drafts]
        tensors["draft_tokens"] = int32(padded).reshape(batch, call.max_drafts)
    if call.stops:
        padded = [[*row.stop_tokens, *[-1] * call.stops][: call.stops] for row in rows]
        tensors["stop_tokens"] = int32(padded).reshape(batch, call.stops)

    taken = [advance(row, sampled or []) for row, sampled in zip(rows, call.sampled, strict=True)]
    step = prepare(rows, drafts, call.max_drafts, call.block_size)
    padding = tokens - len(step.input_ids)
    expected = {
        "status": int32([row.status for row in rows]),
        "past_lens": int32([row.past_len for row in rows]),
        "remaining": int32([row.remaining for row in rows]),
        "next_token": int32([row.next_token for row in rows]),
        "num_new_tokens": int32(taken),
        "input_ids": int32(step.input_ids + [0] * padding),
        "position_ids": int32(step.position_ids + [0] * padding),
        "slot_mapping": int32(step.slot_mapping + [-1] * padding),
        "cu_seqlens": int32(step.cu_seqlens),
        "logits_indices": int32(step.logits_indices),
    }
    if call.counted:
        expected["num_sampled"] = int32([row.num_sampled for row in rows])
    return Case(name, "step_prepare", tensors, expected, {"block_size": float(call.block_size)})


def states() -> Call:
    """A row of each state, and each way that a running one can go on."""
    run, wait = Status.RUNNING, Status.WAITING
    rows = [
        Row(run, 5, 9, 77, [3, 4]),
        Row(Status.EMPTY, POISON, POISON, POISON, []),
        Row(run, 15, 9, 77, [3, 8]),  # goes on in its second block
        Row(run, 15, 9, 77, [3]),  # has no second block
        Row(run, 63, 9, 77, [1, 2, 6, 7]),  # has no column for a fifth
        Row(run, 5, 1, 77, [9]),  # may have no more
        Row(run, 5, 9, 77, [9], [40, 105]),  # stops
        Row(run, 5, 1, 77, [9], [107]),  # stops with its last token
        Row(run, 0, 3, 77, [0], [5]),
        Row(wait, 17, 4, 31, [-1, 12]),  # joins; its window has left the first block
        Row(wait, 16, 4, 32, [13]),  # still lacks a block
        Row(Status.STOPPED, 7, 3, 33, [14]),
        Row(Status.EXHAUSTED, 7, 0, 34, [15]),
        Row(run, 30, 2, 77, [16, 17], num_sampled=9),
        Row(run, 5, 1, 77, [18], num_sampled=3),  # gets no token
    ]
    sampled = [[100 + i] if row.status is run else None for i, row in enumerate(rows)]
    sampled[6], sampled[7], sampled[14] = [105], [107], [-1]
    return Call(rows, sampled, tokens=24, stops=2)


def speculative() -> Call:
    """Accepted drafts meet a stop token, the limit or neither; new ones meet the limit, the end of the blocks, of the
    table, or of the drafts."""
    run = Status.RUNNING
    rows = [
        Row(run, 12, 9, 77, [4, 0]),  # three tokens, then drafts over a border of blocks
        Row(run, 12, 9, 77, [5, 6], [50]),  # the second of three is a stop token
        Row(run, 12, 2, 77, [7, 8]),  # may have two of the three
        Row(run, 12, 9, 77, [9]),  # one draft has a slot
        Row(run, 28, 9, 77, [1, 10]),  # the same at the table's end
        Row(run, 12, 5, 77, [11, 12]),  # one draft may be needed
        Row(run, 12, 9, 77, [13, 14]),  # the second draft is none
        Row(run, 13, 9, 77, [15]),  # no slot at all
        Row(Status.WAITING, 12, 9, 31, [16, 17]),  # joins, with drafts
        Row(run, 12, 9, 77, [18, 19]),  # no token after two that were accepted
    ]
    sampled: list[list[int] | None] = [[40 + i, 50, 60 + i] for i in range(8)]
    drafts = [[80 + i, 90 + i, 100 + i] for i in range(10)]
    drafts[6] = drafts[6][:1]
    return Call(
        rows, [*sampled, None, [45, 46, -1]], drafts, 4, 3, 2, stops=1, speculative=True, counted=False
    )


def some(seed: int, batch: int, drafts: int, block_size: int, max_blocks: int, tokens: int = 0) -> Call:
    """A random batch: all states, lengths at the edges of blocks, few tokens so that stops are met."""
    generator = random.Random(seed)
    rows, sampled, guesses = [], [], []
    for _ in range(batch):
        status = generator.choice([Status.RUNNING] * 5 + [Status.WAITING] * 2 + list(Status))
        past = generator.randrange(max_blocks * block_size)
        past = generator.choice([past, past // block_size * block_size, past // block_size * block_size + 15])
        past = min(past, max_blocks * block_size - 1)
        held = min(past // block_size + generator.randrange(3), max_blocks)
        blocks = generator.sample(range(1000), held)
        stops = generator.sample(range(20), generator.randrange(3))
        rows.append(Row(status, past, generator.randrange(1, 7), generator.randrange(20), blocks, stops))
        count = 1 + generator.randrange(drafts + 1)
        running = status is Status.RUNNING
        sampled.append([generator.randrange(20) for _ in range(count)] if running else None)
        guesses.append([generator.randrange(20) for _ in range(generator.randrange(drafts + 1))])
    return Call(
        rows,
        sampled,
        guesses if drafts else None,
        1 + drafts,
        drafts,
        max_blocks,
        block_size,
        tokens,
        2,
        drafts > 0,
    )


def cases(scale: Scale, seed: int) -> Iterator[Case]:
    """See `plugins.checks`."""
    yield case_of("every state", states())
    plain = Call([Row(Status.RUNNING, 7, 9, 1, [2])], [[5]])
    yield case_of("one sequence", plain)
    yield case_of("no sequence", Call([], []))
    nobody = [Row(Status.EMPTY, 0, 0, 0, []), Row(Status.STOPPED, 4, 2, 1, [1])]
    yield case_of("nobody goes on", Call(nobody, [None, None], tokens=5))
    yield case_of(
        "a draft where none may be", Call([Row(Status.WAITING, 7, 1, 3, [2])], [None], [[9, 9]], 1, 2)
    )
    yield case_of("speculation", speculative())
    yield case_of("drafts 3", some(seed, 9, 3, 16, 5))
    yield case_of("batch 33", some(seed + 1, 33, 0, 32, 3, 40))
    yield case_of("batch 257", some(seed + 2, 257, 0, 16, 4))  # one more than the threads
    if scale is Scale.QUICK:
        return
    for i in range(40 if scale is Scale.FULL else 12):
        batch = (1, 2, 31, 32, 64, 97, 256, 300)[i % 8] if scale is Scale.FULL else (1, 3, 17, 40)[i % 4]
        drafts = (0, 1, 4, 7)[i // 2 % 4]
        block_size = (16, 32, 64, 128, 256, 1)[i % 6]
        yield case_of(
            f"random {i}: batch {batch}, drafts {drafts}, block size {block_size}",
            some(1000 * seed + i, batch, drafts, block_size, (1, 4, 9)[i % 3], i % 5 * batch),
        )
    yield case_of("batch 600", some(seed + 3, 600, 2, 16, 4, 2000))
    yield from refused()


def refused() -> Iterator[Case]:
    """Calls that are turned down in words."""
    case = case_of("", Call([Row(Status.RUNNING, 7, 9, 1, [2])] * 2, [[5], [6]]))
    for words, tensors, expected, attributes in (
        ("which needs num_accepted", {"sampled": int32([1, 2, 3, 4], 2, 2)}, {}, {}),
        ("sampled has no column", {"sampled": int32([], 2, 0)}, {}, {}),
        ("input_ids has 1 tokens; 2 sequences of 1 + 0 tokens need 2", {},
         {name: int32([0]) for name in ("input_ids", "position_ids", "slot_mapping")}, {}),
        ("logits_indices has 4 rows; it must have batch * (1 + drafts) = 2", {},
         {"logits_indices": int32([0, 0, 0, 0])}, {}),
        ("axis 0 must be batch+1, and batch is 2", {}, {"cu_seqlens": int32([0, 0])}, {}),
        ("block_size is 0; allowed are 1 to 65536", {}, {}, {"block_size": 0.0}),
    ):  # fmt: skip
        yield Case(
            f"refused: {words}",
            "step_prepare",
            {**case.tensors, **tensors},
            {**case.expected, **expected},
            {**case.attributes, **attributes},
            error=words,
        )
