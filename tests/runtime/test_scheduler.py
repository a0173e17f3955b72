"""Scheduler and block manager by themselves: ints in, ints out, no engine."""

from __future__ import annotations

import pytest

from model_repo.runtime.block_manager import BlockManager
from model_repo.runtime.contract import Limits
from model_repo.runtime.scheduler import Scheduler
from model_repo.runtime.sequence import Sequence
from model_repo.runtime.step_plan import StepPlan
from tests.runtime.invariants import check_free_list, check_scheduler


def scheduler(num_blocks: int = 16, max_batch: int = 4, token_budget: int = 16) -> Scheduler:
    limits = Limits(max_batch, token_budget, max_length=16, block_size=4, num_blocks=num_blocks)
    return Scheduler(limits, BlockManager(num_blocks, 4))


def sequence(name: str, length: int, max_new_tokens: int = 4) -> Sequence:
    return Sequence(name, [ord(name)] * length, max_new_tokens)


def planned(of: Scheduler) -> StepPlan:
    plan = of.plan()
    assert plan is not None
    return plan


def test_an_idle_scheduler_plans_nothing() -> None:
    of = scheduler()
    assert of.plan() is None
    assert of.is_idle


def test_two_plans_are_in_flight_at_most() -> None:
    of = scheduler()
    of.add(sequence("a", 5))
    plan = planned(of)
    next_plan = planned(of)
    with pytest.raises(RuntimeError, match="commit or abandon the first"):
        of.plan()
    with pytest.raises(RuntimeError, match="not the oldest"):
        of.commit(next_plan, [1])
    with pytest.raises(ValueError, match="2 tokens for 1 rows"):
        of.commit(plan, [1, 2])


def test_blocks_of_a_sequence_that_ends_while_its_step_runs_stay_until_the_step_is_over() -> None:
    of = scheduler()
    a, b = sequence("a", 5), sequence("b", 5)
    of.add(a)
    of.add(b)
    plan = planned(of)
    assert of.blocks.num_used == 4
    of.finish(a, "cancelled")
    assert of.running == [b]
    assert of.blocks.num_used == 4, "the step still writes to them"
    assert of.commit(plan, [7, 8]) == [b]
    assert a.token_ids == [ord("a")] * 5
    assert a.finish_reason == "cancelled"
    assert of.blocks.num_used == 2
    check_scheduler(of)


def test_a_step_that_fails_takes_its_sequences_out_and_frees_their_blocks() -> None:
    of = scheduler(max_batch=2)
    a, b, waits = sequence("a", 5), sequence("b", 5), sequence("c", 5)
    for one in (a, b, waits):
        of.add(one)
    plan = planned(of)
    of.finish(b, "timeout")
    assert of.abandon(plan) == [a]
    assert (a.finish_reason, b.finish_reason, waits.finish_reason) == ("error", "timeout", None)
    assert of.blocks.num_used == 0
    with pytest.raises(RuntimeError, match="not in flight"):
        of.commit(plan, [1, 2])
    assert [entry.sequence for entry in planned(of).entries] == [waits]


def test_nothing_of_a_failed_step_is_shared() -> None:
    of = scheduler()
    of.add(sequence("a", 9))
    of.abandon(planned(of))
    again = sequence("a", 9)
    of.add(again)
    assert planned(of).entries[0].num_new_tokens == 9


def test_a_prompt_waits_until_the_whole_of_it_has_room() -> None:
    of = scheduler(num_blocks=4, token_budget=8)
    of.add(sequence("a", 5, max_new_tokens=3))
    of.add(sequence("b", 12))
    plan = planned(of)
    assert [(entry.sequence.request_id, entry.num_new_tokens) for entry in plan.entries] == [("a", 5)]
    of.commit(plan, [1])
    assert len(of.waiting) == 1


def test_running_requests_go_before_the_rest_of_a_long_prompt() -> None:
    of = scheduler(token_budget=8)
    long, short = sequence("l", 14), sequence("s", 2)
    of.add(long)
    of.commit(planned(of), [])
    of.add(short)
    counts = {entry.sequence: entry.num_new_tokens for entry in planned(of).entries}
    assert counts == {long: 6, short: 2}


# ------------------------------------------------------------------ blocks


def test_blocks_are_taken_all_or_none() -> None:
    blocks = BlockManager(3, 4)
    taken = blocks.take(2)
    assert taken is not None
    assert blocks.take(2) is None
    assert blocks.num_free == 1
    assert blocks.take(0) == []
    blocks.release(taken)
    assert blocks.num_free == 3
    check_free_list(blocks)


def test_a_prefix_is_found_by_its_tokens_after_its_holder_has_gone() -> None:
    blocks = BlockManager(4, 2)
    taken = blocks.take(2)
    assert taken is not None
    blocks.register(taken[0], None, [1, 2])
    blocks.register(taken[1], taken[0], [3, 4])
    blocks.release(taken)
    assert blocks.match([1, 2, 3, 4, 5], 4) == taken
    assert blocks.match([1, 2, 3, 4, 5], 3) == taken[:1]
    assert blocks.match([1, 2, 9, 4], 4) == taken[:1]
    assert blocks.match([3, 4], 2) == [], "the same tokens after something else"
    blocks.share(taken)
    assert blocks.num_used == 2
    blocks.release(taken)
    check_free_list(blocks)


def test_what_was_used_longest_ago_is_forgotten_first_and_ends_before_beginnings() -> None:
    blocks = BlockManager(4, 1)
    old = blocks.take(2)
    new = blocks.take(2)
    assert old is not None
    assert new is not None
    for chain, tokens in ((old, [1, 2]), (new, [3, 4])):
        blocks.register(chain[0], None, tokens[:1])
        blocks.register(chain[1], chain[0], tokens[1:])
    blocks.release(old)
    blocks.release(new)
    assert blocks.take(1) == [old[1]]
    assert blocks.match([1, 2], 2) == [old[0]]
    assert blocks.match([3, 4], 2) == new
    assert blocks.take(1) == [old[0]]
    assert blocks.match([1, 2], 2) == []
    check_free_list(blocks)


def test_a_block_whose_beginning_was_forgotten_is_not_found_through_another() -> None:
    blocks = BlockManager(3, 1)
    chain = blocks.take(2)
    assert chain is not None
    blocks.register(chain[0], None, [1])
    blocks.register(chain[1], chain[0], [2])
    blocks.release(chain[:1])
    blocks.take(2)  # the free block and the chain's beginning
    assert blocks.match([1, 2], 2) == []
    other = chain[0]
    blocks.register(other, None, [9])
    assert blocks.match([9, 2], 2) == [other]
    check_free_list(blocks)


def test_sharing_can_be_off() -> None:
    blocks = BlockManager(2, 1, share_prefixes=False)
    taken = blocks.take(1)
    assert taken is not None
    blocks.register(taken[0], None, [1])
    assert blocks.match([1, 2], 1) == []
