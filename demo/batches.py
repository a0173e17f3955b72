"""Training batches as a pure function of how many tokens were consumed, so that a run can resume."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch


class Batches:
    """Rows of `context + 1` consecutive tokens; each epoch a new offset and a new order."""

    def __init__(self, ids: npt.NDArray[np.uint16], seed: int) -> None:
        """`ids`: the training text [tokens]; `seed` decides the order."""
        self._ids = ids
        self._seed = seed
        self._epoch_starts = lru_cache(maxsize=2)(self._starts)

    def _starts(self, epoch: int, context: int) -> npt.NDArray[np.int64]:
        generator = np.random.default_rng([self._seed, epoch, context])
        offset = int(generator.integers(context))
        starts = np.arange(offset, len(self._ids) - context - 1, context, dtype=np.int64)
        return generator.permutation(starts)

    def at(self, consumed: int, context: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(inputs, targets), int64 [tokens / context, context] each, after `consumed` tokens were seen."""
        epoch, within = divmod(consumed, len(self._ids))
        starts = self._epoch_starts(epoch, context)
        rows = []
        for row in range(tokens // context):
            start = starts[(within // context + row) % len(starts)]
            rows.append(self._ids[start : start + context + 1].astype(np.int64))
        block = torch.from_numpy(np.stack(rows))
        return block[:, :-1], block[:, 1:]
