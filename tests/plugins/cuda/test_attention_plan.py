"""`attention_plan`: the work list under the emulator against its reference, and what a work list must be."""

from __future__ import annotations

import itertools

import pytest
import torch

from plugins.checks import attention_plan as checks
from plugins.cuda.case import Scale
from plugins.cuda.emulated import Build, check
from plugins.cuda.library import Library
from plugins.reference.attention_plan import HEADER_INTS, Limits, make_plan

OPERATORS = ("attention_plan",)


@pytest.mark.parametrize(
    ("flavour", "scale", "seed"), [("plain", "small", 1), ("asan", "quick", 2), ("tsan", "small", 3)]
)
def test_the_kernel_writes_what_the_reference_writes(flavour: str, scale: str, seed: int) -> None:
    assert check(checks.cases(Scale(scale), seed), Build(flavour, OPERATORS), seed=seed) == {}


def test_the_library_says_how_large_a_plan_is() -> None:
    library = Library(Build("plain", OPERATORS).library())
    for step in checks.SMALL:
        case = checks.case_of(step)
        tensors = {**case.tensors, "attention_metadata": torch.empty(0, dtype=torch.int32)}
        assert library.workspace_bytes("attention_plan", tensors, case.attributes) == 4 * step.limits.ints


def rows_and_keys(
    limits: Limits, plan: torch.Tensor, cu_seqlens: list[int]
) -> list[tuple[int, int, int, int]]:
    """(token, head of the group, first key, last key + 1) of every row of every item."""
    header = plan[:HEADER_INTS].tolist()
    at = HEADER_INTS + 8 * limits.batch
    items = plan[at : at + 8 * limits.items].view(-1, 8)[: header[2] + header[3]].tolist()
    shared_at = at + 8 * limits.items + limits.tokens + limits.split_tokens
    shared = plan[shared_at : shared_at + limits.split_tokens].tolist()
    found = []
    for sequence, first_row, rows, begin, end, _, place, _ in items:
        assert 0 < rows <= 64
        assert begin < end
        for row in range(first_row, first_row + rows):
            index = row // limits.group
            token = shared[place + index] if place >= 0 else cu_seqlens[sequence] + index
            found.append((token, row % limits.group, begin, end))
    return found


@pytest.mark.parametrize("step", checks.SMALL, ids=lambda step: step.name)
def test_every_row_meets_each_key_once(step: checks.Step) -> None:
    """The items of a row do not overlap, and together hold all that it sees."""
    limits = step.limits
    lengths = [0, *itertools.accumulate(new for _, new in step.sequences)]
    leaders = [leader for leader, _ in step.shared] or None
    shared = [tokens for _, tokens in step.shared] or None
    plan = make_plan(limits, lengths, [past for past, _ in step.sequences], leaders, shared)
    pieces: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for token, head, begin, end in rows_and_keys(limits, plan, lengths):
        pieces.setdefault((token, head), []).append((begin, end))
    live = lengths[-1]
    assert set(pieces) == set(itertools.product(range(live), range(limits.group)))
    for (past, new), start in zip(step.sequences, lengths, strict=False):
        for token in range(new):
            position = past + token
            first = max(0, position + 1 - step.window) if step.window >= 0 else 0
            for head in range(limits.group):
                ranges = sorted(pieces[start + token, head])
                assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
                assert ranges[0][0] <= first or step.window == 0
                assert ranges[-1][1] > position


def test_units_are_dealt_out_evenly() -> None:
    """No worker has more than its share and one unit."""
    step = checks.Step("even", ((4000, 1), (100, 1), (2000, 300), (17, 1)), kv_heads=4, heads=8, workers=13)
    limits = step.limits
    plan = make_plan(limits, [0, 1, 2, 302, 303], [4000, 100, 2000, 17])
    header = plan[:HEADER_INTS].tolist()
    at = HEADER_INTS + 8 * limits.batch
    items = plan[at : at + 8 * limits.items].view(-1, 8)
    begins = plan[limits.ints - 2 * (limits.workers + 1) :].view(2, -1).tolist()
    for kind, count, first in ((0, header[2], 0), (1, header[3], header[2])):
        mine = items[first : first + count]
        cost = ((mine[:, 4] + 63) // 64 - mine[:, 3] // 64 + 2).repeat_interleave(limits.kv_heads)
        assert begins[kind][0] == 0
        assert begins[kind][-1] == len(cost)
        shares = [int(cost[a:b].sum()) for a, b in itertools.pairwise(begins[kind])]
        assert max(shares) <= int(cost.sum()) / limits.workers + int(cost.max())
