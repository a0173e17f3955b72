"""What must hold of blocks and sequences between any two steps."""

from __future__ import annotations

from collections import Counter

from model_repo.runtime.block_manager import BlockManager
from model_repo.runtime.engine import Engine
from model_repo.runtime.scheduler import Scheduler
from model_repo.runtime.sequence import Sequence


def check_engine(engine: Engine) -> None:
    """AssertionError where the engine's bookkeeping contradicts itself. Call it between steps."""
    check_scheduler(engine._scheduler)
    alive = {*engine._scheduler.running, *engine._scheduler.waiting}
    assert set(engine._live) == alive, "requests and sequences differ"


def check_scheduler(scheduler: Scheduler) -> None:
    """AssertionError where blocks are held by others than the sequences that list them."""
    blocks, running = scheduler.blocks, scheduler.running
    assert len(running) <= scheduler.limits.max_batch
    assert len({*running, *scheduler.waiting}) == len(running) + len(scheduler.waiting)
    for sequence in scheduler.waiting:
        assert sequence.block_ids == []
        assert sequence.num_computed_tokens == sequence.num_steps_in_flight == 0
    leaving = {
        entry.sequence
        for plan in scheduler.in_flight
        for entry in plan.entries
        if entry.sequence.finish_reason is not None
    }
    listed = Counter(block for sequence in (*running, *leaving) for block in sequence.block_ids)
    assert {block: count for block, count in enumerate(blocks._holders) if count} == listed
    check_free_list(blocks)
    _check_sources(scheduler)
    for sequence in running:
        _check_sequence(sequence, blocks)
    _check_shared(running, blocks.block_size)


def _check_sources(scheduler: Scheduler) -> None:
    """Every running sequence with an encoder holds the blocks of its output alone, and so may one that waits again."""
    blocks = scheduler.cross_blocks
    held = [
        block for sequence in (*scheduler.running, *scheduler.waiting) for block in sequence.source_block_ids
    ]
    assert len(held) == len(set(held)) == blocks.num_used
    check_free_list(blocks)
    for sequence in scheduler.running:
        assert len(sequence.source_block_ids) == blocks.blocks_for(sequence.num_source_positions)
    for sequence in scheduler.waiting:
        assert not sequence.source_block_ids or sequence.num_preemptions


def check_free_list(blocks: BlockManager) -> None:
    """Free blocks are those without holder; each registered content belongs to one block."""
    assert sorted(blocks._free) == [block for block, count in enumerate(blocks._holders) if count == 0]
    assert blocks.num_free + blocks.num_used == blocks.num_blocks
    assert {block: key for key, block in blocks._blocks.items()} == blocks._key


def _check_sequence(sequence: Sequence, blocks: BlockManager) -> None:
    assert sequence.finish_reason is None
    assert len(set(sequence.block_ids)) == len(sequence.block_ids)
    assert len(sequence.block_ids) == blocks.blocks_for(sequence.num_computed_tokens)
    assert 0 <= sequence.num_computed_tokens < sequence.num_tokens + sequence.num_coming_tokens


def _check_shared(running: list[Sequence], size: int) -> None:
    """A block of several sequences is full in each, at one place, with equal tokens from the start."""
    first: dict[int, tuple[Sequence, int]] = {}
    for sequence in running:
        for index, block in enumerate(sequence.block_ids):
            if block not in first:
                first[block] = (sequence, index)
                continue
            other, place = first[block]
            end = (index + 1) * size
            assert place == index
            assert min(sequence.num_computed_tokens, other.num_computed_tokens) >= end
            assert sequence.token_ids[:end] == other.token_ids[:end]
