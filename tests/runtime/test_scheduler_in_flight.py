"""The scheduler with two plans in flight: the tokens of one plan at a time, and blocks that nobody else writes to."""

from __future__ import annotations

import zlib
from collections.abc import Sequence as Seq
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_repo.runtime.block_manager import BlockManager
from model_repo.runtime.contract import Limits
from model_repo.runtime.scheduler import MIN_CHUNK, Scheduler
from model_repo.runtime.sequence import Sequence
from model_repo.runtime.step_plan import NOT_CARRIED, PlannedSequence, StepPlan
from tests.runtime.invariants import check_scheduler

END = 7


def after(token_ids: Seq[int]) -> int:
    """The model's next token: any token before it changes it."""
    return zlib.crc32(bytes(token_ids)) % 31


class Written(NamedTuple):
    """What a slot of the cache holds."""

    position: int
    token: int


class Device:
    """Computes plans in order, as late as they may be, with the blocks that sequences had when they were planned."""

    def __init__(self, of: Scheduler) -> None:
        self._of = of
        self._cache: dict[int, Written] = {}
        self._queued: list[tuple[StepPlan, list[list[int]], list[list[int]]]] = []
        self._sampled: list[int] = []

    def launch(self, plan: StepPlan) -> None:
        tokens = [[0] if entry.carried_row != NOT_CARRIED else _known_tokens(entry) for entry in plan.entries]
        for entry, ids in zip(plan.entries, tokens, strict=True):
            assert len(ids) == entry.num_new_tokens
        self._queued.append((plan, tokens, [list(entry.sequence.block_ids) for entry in plan.entries]))

    def check_writers(self) -> None:
        """No block that a queued step writes to is free, and none is another sequence's."""
        writer: dict[int, Sequence] = {}
        for plan, _, tables in self._queued:
            for entry, blocks in zip(plan.entries, tables, strict=True):
                for block in blocks[entry.num_cached_tokens // self._of.blocks.block_size :]:
                    assert self._of.blocks._holders[block] == 1
                    assert writer.setdefault(block, entry.sequence) is entry.sequence
                    assert block in entry.sequence.block_ids

    def run(self) -> list[int]:
        """Computes the oldest step; gives the token of each row of logits."""
        plan, tokens, tables = self._queued.pop(0)
        before, self._sampled = self._sampled, []
        size = self._of.blocks.block_size
        for entry, ids, blocks in zip(plan.entries, tokens, tables, strict=True):
            start = entry.num_cached_tokens
            new = [before[entry.carried_row]] if entry.carried_row != NOT_CARRIED else ids
            for position, token in enumerate(new, start):
                self._cache[blocks[position // size] * size + position % size] = Written(position, token)
            if entry.num_logit_rows:
                seen = [self._cache[blocks[p // size] * size + p % size] for p in range(start + len(new))]
                assert [one.position for one in seen] == list(range(len(seen)))
                self._sampled.append(after([one.token for one in seen]))
        return self._sampled


def _known_tokens(entry: PlannedSequence) -> list[int]:
    return entry.sequence.token_ids[entry.num_cached_tokens :][: entry.num_new_tokens]


class Wanted(NamedTuple):
    """A sequence to be computed. `cancelled_at`: the action before which it ends from outside, if it is."""

    prompt: list[int]
    max_new_tokens: int
    waits_for_token: bool
    cancelled_at: int | None

    def made(self, name: str) -> Sequence:
        ends = frozenset([END])
        return Sequence(
            name, list(self.prompt), self.max_new_tokens, ends, waits_for_token=self.waits_for_token
        )

    def expected(self) -> list[int]:
        """Tokens and reason, computed without any scheduler."""
        tokens = list(self.prompt)
        while len(tokens) < len(self.prompt) + self.max_new_tokens and tokens[len(self.prompt) :][-1:] != [
            END
        ]:
            tokens.append(after(tokens))
        return tokens


MAX_LENGTH = 24
WANTED = st.builds(
    Wanted,
    st.one_of(
        st.lists(st.integers(0, 30), min_size=1, max_size=14),
        st.integers(1, 14).map(lambda length: list(range(length))),  # prompts that share blocks
    ),
    st.integers(1, 10),
    st.sampled_from([False, False, True]),
    st.one_of(st.none(), st.none(), st.integers(0, 30)),
)


@st.composite
def schedulers(draw: st.DrawFn) -> Scheduler:
    block_size = draw(st.integers(1, 5))
    fewest = -(-MAX_LENGTH // block_size)
    limits = Limits(
        max_batch=draw(st.integers(1, 5)),
        token_budget=draw(st.integers(3, 20)),
        max_length=MAX_LENGTH,
        block_size=block_size,
        num_blocks=draw(st.integers(fewest, 3 * fewest)),
    )
    return Scheduler(limits, BlockManager(limits.num_blocks, block_size, draw(st.booleans())))


@settings(max_examples=400, deadline=None, derandomize=True)
@given(schedulers(), st.lists(WANTED, min_size=1, max_size=6), st.lists(st.booleans(), max_size=60))
def test_any_interleaving_gives_the_tokens_of_the_model(
    of: Scheduler, wanted: list[Wanted], plans_first: list[bool]
) -> None:
    """Plans and commits in any order that is allowed."""
    device = Device(of)
    sequences = [one.made(str(index)) for index, one in enumerate(wanted)]
    for sequence in sequences:
        of.add(sequence)
    for action in range(600):
        for one, sequence in zip(wanted, sequences, strict=True):
            if one.cancelled_at == action:
                of.finish(sequence, "cancelled")
        plan = None
        if len(of.in_flight) < 2 and (not of.in_flight or action >= len(plans_first) or plans_first[action]):
            plan = of.plan()
            if plan is not None:
                _check_plan(plan, of)
                device.launch(plan)
        if plan is None and of.in_flight:
            of.commit(of.in_flight[0], device.run())
        check_scheduler(of)
        device.check_writers()
        if of.is_idle:
            break
    assert of.is_idle
    assert of.blocks.num_used == 0
    for one, sequence in zip(wanted, sequences, strict=True):
        if sequence.finish_reason == "cancelled":
            assert one.cancelled_at is not None
            assert sequence.token_ids == one.expected()[: sequence.num_tokens]
        else:
            assert sequence.token_ids == one.expected()
            assert sequence.finish_reason == ("stop" if sequence.token_ids[-1] == END else "length")


def _check_plan(plan: StepPlan, of: Scheduler) -> None:
    assert plan.num_tokens <= of.limits.token_budget
    assert len(plan.entries) <= of.limits.max_batch
    for entry in plan.entries:
        sequence = entry.sequence
        end = entry.num_cached_tokens + entry.num_new_tokens
        assert end <= sequence.num_prompt_tokens + sequence.max_new_tokens - 1, "computed past the last token"
        if 0 < entry.num_cached_tokens < end <= sequence.num_prompt_tokens:
            assert entry.num_new_tokens >= MIN_CHUNK
        if entry.carried_row != NOT_CARRIED:
            before = [other for other in of.in_flight[0].entries if other.num_logit_rows]
            assert before[entry.carried_row].sequence is sequence
            assert not sequence.waits_for_token
            assert entry.num_new_tokens == 1


# ------------------------------------------------------------------ one thing at a time


def scheduler(num_blocks: int = 16, max_batch: int = 4, token_budget: int = 16) -> Scheduler:
    limits = Limits(max_batch, token_budget, max_length=16, block_size=4, num_blocks=num_blocks)
    return Scheduler(limits, BlockManager(num_blocks, 4))


def planned(of: Scheduler) -> StepPlan:
    plan = of.plan()
    assert plan is not None
    return plan


def test_a_token_is_planned_before_it_is_known() -> None:
    of = scheduler()
    a, b = Sequence("a", [1] * 5, 4), Sequence("b", [2] * 3, 4)
    of.add(a)
    of.add(b)
    first = planned(of)
    assert [entry.carried_row for entry in first.entries] == [NOT_CARRIED] * 2
    second = planned(of)
    assert second.entries == ((a, 1, 1, 5, 0), (b, 1, 1, 3, 1))
    of.commit(first, [8, 9])
    of.finish(a, "cancelled")
    third = planned(of)
    assert third.entries == ((b, 1, 1, 4, 1),)
    assert of.blocks.num_used == 4, "the second step still writes to a's"
    assert of.commit(second, [10, 11]) == [b]
    assert of.blocks.num_used == 2
    assert (a.token_ids[5:], b.token_ids[3:]) == ([8], [9, 11])


def test_nothing_is_planned_after_a_token_that_is_the_last() -> None:
    of = scheduler()
    of.add(Sequence("a", [1] * 5, 2))
    first, second = planned(of), planned(of)
    of.commit(first, [8])
    assert of.plan() is None
    assert not of.is_idle
    (a,) = of.commit(second, [9])
    assert a.finish_reason == "length"
    assert of.is_idle


def test_an_end_token_frees_blocks_after_the_step_that_was_planned_past_it() -> None:
    of = scheduler()
    a = Sequence("a", [1] * 4, 5, frozenset([END]))
    of.add(a)
    first, second = planned(of), planned(of)
    assert of.blocks.num_used == 2
    assert of.commit(first, [END]) == [a]
    assert of.running == []
    assert of.blocks.num_used == 2
    assert of.commit(second, [3]) == []
    assert a.token_ids == [1, 1, 1, 1, END]
    assert of.blocks.num_used == 0


def test_blocks_that_run_short_are_waited_for_and_those_taken_come_back() -> None:
    of = scheduler(num_blocks=4)
    a, b = Sequence("a", [1] * 8, 8), Sequence("b", [2] * 4, 8)
    of.add(a)
    of.add(b)
    first = planned(of)
    assert of.blocks.num_free == 1
    assert of.plan() is None, "one block for two"
    assert of.blocks.num_free == 1
    assert of.num_preemptions == 0
    of.commit(first, [8, 9])
    assert [entry.sequence for entry in planned(of).entries] == [a]
    assert of.num_preemptions == 1
    check_scheduler(of)


def test_a_failed_step_takes_its_sequences_out_of_the_one_behind_it() -> None:
    of = scheduler()
    a, joins = Sequence("a", [1] * 5, 4), Sequence("b", [2] * 5, 4)
    of.add(a)
    first = planned(of)
    of.add(joins)
    second = planned(of)
    assert of.abandon(first) == [a]
    assert of.blocks.num_used == 4
    assert of.commit(second, [8, 9]) == [joins]
    assert of.blocks.num_used == 2
    assert a.token_ids == [1] * 5


def test_prefixes_are_shared_when_they_are_computed() -> None:
    of = scheduler(token_budget=32)
    of.add(Sequence("a", list(range(10)), 4))
    first = planned(of)
    of.add(Sequence("b", list(range(10)), 4))
    second = planned(of)
    assert second.entries[-1].num_cached_tokens == 0, "the first step may still fail"
    of.commit(first, [8])
    of.add(Sequence("c", list(range(10)), 4))
    assert planned(of).entries[-1].num_cached_tokens == 8


def test_plans_are_committed_in_order() -> None:
    of = scheduler()
    of.add(Sequence("a", [1] * 5, 4))
    first, second = planned(of), planned(of)
    with pytest.raises(RuntimeError, match="not the oldest"):
        of.commit(second, [1])
    of.commit(first, [1])
    of.commit(second, [2])
