"""A precision for each layer under a budget: the multiple-choice knapsack, solved exactly.

Losses of single layers are added up. Layer by layer the frontier grows: all pairs (bytes, loss) of which no other has
both fewer bytes and less loss (Nemhauser and Ullmann 1969). Where the frontier would hold more than MOST_POINTS, the
best of each step of bytes stays, and the result is exact up to that step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from model_repo.runtime.errors import BadInput

MOST_POINTS = 100_000


class Option(NamedTuple):
    """One precision of one layer."""

    precision: str
    num_bytes: int  # codes, scales and zero points
    loss: float


class Allocation(NamedTuple):
    """A precision for every layer, and what it should come to."""

    precisions: dict[str, str]  # by layer
    num_bytes: int
    loss: float  # sum of the layers' own


class Frontier:
    """The best that can be had for each number of bytes."""

    def __init__(self, options: Mapping[str, Sequence[Option]]) -> None:
        """`options`: what each layer can be, at least one thing."""
        self._options = options
        self.num_bytes: npt.NDArray[np.int64] = np.zeros(1, np.int64)  # ascending
        self.losses: npt.NDArray[np.float64] = np.zeros(1)  # descending
        self._steps: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
        for choices in options.values():
            self._add(choices)

    def within_bytes(self, most: float) -> Allocation:
        """The least loss in at most so many bytes. Raises BadInput when no allocation is that small."""
        place = int(np.searchsorted(self.num_bytes, most, side="right")) - 1
        if place < 0:
            raise BadInput(
                f"a budget of {most:.0f} bytes is too small: the layers take at least {self.num_bytes[0]} bytes in the "
                "precisions given; allow more, or a precision of fewer bits"
            )
        return self._at(place)

    def within_loss(self, most: float) -> Allocation:
        """The fewest bytes with at most so much loss. Raises BadInput when none is that good."""
        good = np.flatnonzero(self.losses <= most)
        if not len(good):
            raise BadInput(
                f"a loss of at most {most:g} cannot be had: the least is {self.losses[-1]:g} in the precisions given; "
                "allow more, or a precision of more bits"
            )
        return self._at(int(good[0]))

    def _add(self, choices: Sequence[Option]) -> None:
        sizes = np.array([choice.num_bytes for choice in choices])
        losses = np.array([choice.loss for choice in choices])
        total = (self.num_bytes[:, None] + sizes).ravel()
        loss = (self.losses[:, None] + losses).ravel()
        order = np.lexsort((loss, total))
        least = np.minimum.accumulate(loss[order])
        better = np.concatenate(([True], least[1:] < least[:-1]))
        kept = order[better]
        if len(kept) > MOST_POINTS:
            kept = kept[_best_of_each_step(total[kept])]
        self._steps.append((kept // len(choices), kept % len(choices)))
        self.num_bytes, self.losses = total[kept], loss[kept]

    def _at(self, place: int) -> Allocation:
        size, loss = int(self.num_bytes[place]), float(self.losses[place])
        precisions: dict[str, str] = {}
        for (before, chosen), (layer, choices) in zip(
            reversed(self._steps), reversed(list(self._options.items())), strict=True
        ):
            precisions[layer] = choices[int(chosen[place])].precision
            place = int(before[place])
        return Allocation(dict(reversed(precisions.items())), size, loss)


def _best_of_each_step(total: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Places of the last point, which has the least loss, of each step of bytes; and of the first of all."""
    step = max(int(total[-1] - total[0]) // (MOST_POINTS - 1), 1) + 1
    bucket = (total - total[0]) // step
    last = np.flatnonzero(np.concatenate((bucket[1:] != bucket[:-1], [True])))
    return np.unique(np.concatenate(([0], last)))
