"""Block tables kept from step to step are what the sequences hold now."""

from __future__ import annotations

import random

from model_repo.runtime.block_tables import BlockTables
from model_repo.runtime.contract import Limits
from model_repo.runtime.sequence import Sequence

MAX_BATCH, MAX_BLOCKS = 4, 20


def test_rows_are_what_sequences_hold_whatever_happened_to_them_before() -> None:
    """Sequences grow, give their blocks up, come back with others and as many, end, and are followed by others."""
    generator = random.Random(5)
    tables = BlockTables(Limits(MAX_BATCH, 64, MAX_BLOCKS * 4, 4, MAX_BLOCKS))
    alive = [Sequence(str(number), [1], 9) for number in range(2 * MAX_BATCH)]
    for _ in range(2000):
        place = generator.randrange(len(alive))
        sequence = alive[place]
        if generator.random() < 0.1:
            sequence.block_ids = []  # its end: the scheduler gives up its blocks
            sequence = alive[place] = Sequence("new", [1], 9)
        elif generator.random() < 0.2:
            sequence.block_ids = [
                generator.randrange(1000) for _ in sequence.block_ids
            ]  # preempted, and back
        elif len(sequence.block_ids) < MAX_BLOCKS:
            sequence.block_ids += [generator.randrange(1000) for _ in range(generator.randrange(3))]
        chosen = [one for one in generator.sample(alive, MAX_BATCH) if one.block_ids]
        if not chosen:
            continue
        table = tables.of(chosen)
        width = -(-max(len(one.block_ids) for one in chosen) // 8) * 8
        assert table.tolist() == [one.block_ids + [-1] * (width - len(one.block_ids)) for one in chosen]
