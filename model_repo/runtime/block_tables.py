"""The block tables of all sequences that run, kept from step to step, so that a step writes only what is new."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .contract import Int32Array, Limits
from .sequence import Sequence

WIDTH_MULTIPLE = 8
"""A table's width is rounded up to this, so that steps of like lengths share their shapes."""


class _Row:
    """Where a sequence's blocks lie: the list they were copied from, and how many of it were."""

    __slots__ = ("block_ids", "index", "num_written")

    def __init__(self, index: int, block_ids: list[int]) -> None:
        self.index = index
        self.block_ids = block_ids
        self.num_written = 0


class BlockTables:
    """Rows of int32 [max_blocks], -1 beyond a sequence's end, for as many sequences as hold blocks at a time: those
    that run, and those that have ended while a step was in flight.
    """

    def __init__(self, limits: Limits) -> None:
        self.block_size = limits.block_size
        num_rows = 2 * limits.max_batch
        self._table = np.full((num_rows, table_width(limits.max_blocks)), -1, np.int32)
        self._rows: dict[Sequence, _Row] = {}
        self._free = list(range(num_rows))

    def of(self, sequences: Iterable[Sequence]) -> Int32Array:
        """int32 [sequences, width], a copy; `width` is what the longest of them needs, rounded up."""
        indices: list[int] = []
        widest = 0
        for sequence in sequences:
            block_ids = sequence.block_ids
            row = self._rows.get(sequence)
            if row is None or row.block_ids is not block_ids:
                row = self._enter(sequence)
            length = len(block_ids)
            if row.num_written != length:
                self._table[row.index, row.num_written : length] = block_ids[row.num_written :]
                row.num_written = length
            if length > widest:
                widest = length
            indices.append(row.index)
        return self._table[np.array(indices), : table_width(widest)]

    def _enter(self, sequence: Sequence) -> _Row:
        """An empty row for a sequence that has none, or has other blocks than the row says."""
        row = self._rows.get(sequence)
        if row is not None:
            index = row.index
        else:
            if not self._free:
                self._forget_released()
            index = self._free.pop()
        self._table[index] = -1
        row = self._rows[sequence] = _Row(index, sequence.block_ids)
        return row

    def _forget_released(self) -> None:
        """Frees the rows of sequences that have given their blocks up."""
        gone = [sequence for sequence, row in self._rows.items() if row.block_ids is not sequence.block_ids]
        self._free += [self._rows.pop(sequence).index for sequence in gone]


def table_width(num_blocks: int) -> int:
    """`num_blocks` rounded up to WIDTH_MULTIPLE."""
    return -(-num_blocks // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
