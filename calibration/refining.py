"""An allocation of precisions improved by what is measured in company.

`allocation.py` adds up the losses of single layers, each measured while all others are float. Layers that are rounded
together can cost more than that, or less. So from an allocation a, every other precision p of each layer l is measured
beside the rest of a:

    d(l, p) = loss(a with l at p) - loss(a)

The knapsack over these differences, and the best changes of one and of two layers by their sums, are measured as
wholes. The first that is better becomes a, and so on until none of `TRIES` is, or the measurements that were allowed
are used up.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from model_repo.runtime.errors import BadInput

from .allocation import Allocation, Frontier, Option

TRIES = 16
"""Wholes that are measured after each round of differences, at most."""

Precisions = Mapping[str, str]
Differences = dict[str, list[Option]]
"""For each layer the precision that it has, at loss 0, and others with what they change."""


class Refined(NamedTuple):
    """The best allocation that was measured."""

    allocation: Allocation  # its loss is still the sum of the layers' own
    measured: float
    before: float  # measured loss of the allocation that was begun with
    measurements: int


def refine(
    options: Mapping[str, Sequence[Option]],
    start: Allocation,
    most_bytes: float,
    measure: Callable[[Precisions], float],
    *,
    measurements: int,
    advanced: Callable[[int, int], None] = lambda done, total: None,
) -> Refined:
    """Changes `start` for the better, within `most_bytes`, by at most so many calls of `measure`, at least one.

    `measure` gives the loss of a whole allocation. `advanced` is told calls done and allowed.
    """
    if measurements < 1:
        raise BadInput(f"{measurements} measurements refine nothing; allow one or more")
    sizes = {
        layer: {option.precision: option.num_bytes for option in found} for layer, found in options.items()
    }
    asked = _Asked(measure, measurements, advanced)
    best = dict(start.precisions)
    before = loss = asked(best)
    improved = True
    while improved and asked.left > TRIES:
        found = _differences(options, best, loss, most_bytes, asked)
        improved = False
        for candidate in itertools.islice(_candidates(found, best, sizes, most_bytes), TRIES):
            if not asked.left:
                break
            measured = asked(candidate)
            if measured < loss:
                best, loss, improved = candidate, measured, True
                break
    advanced(measurements, measurements)
    chosen = [
        next(option for option in found if option.precision == best[layer])
        for layer, found in options.items()
    ]
    total = sum(option.loss for option in chosen)
    allocation = Allocation(best, sum(option.num_bytes for option in chosen), total)
    return Refined(allocation, loss, before, measurements - asked.left)


class _Asked:
    """`measure`, counted; what was asked before costs nothing."""

    def __init__(
        self, measure: Callable[[Precisions], float], most: int, advanced: Callable[[int, int], None]
    ) -> None:
        self._measure, self._most, self._advanced = measure, most, advanced
        self._known: dict[tuple[str, ...], float] = {}
        self.left = most

    def __call__(self, precisions: Precisions) -> float:
        key = tuple(precisions.values())
        if key not in self._known:
            self._advanced(self._most - self.left, self._most)
            self._known[key] = self._measure(precisions)
            self.left -= 1
        return self._known[key]


def _differences(
    options: Mapping[str, Sequence[Option]],
    current: Precisions,
    loss: float,
    most_bytes: float,
    asked: _Asked,
) -> Differences:
    """What each other precision of each layer changes, while there are measurements left for `TRIES` wholes.

    Precisions that no allocation within the budget can have are left out; layers that changes are expected to help or
    hurt most come first, so that these are known when measurements run short.
    """
    least = {layer: min(option.num_bytes for option in found) for layer, found in options.items()}
    room = most_bytes - sum(least.values())
    found: Differences = {
        layer: [Option(option.precision, option.num_bytes, 0.0)]
        for layer, choices in options.items()
        for option in choices
        if option.precision == current[layer]
    }
    own = {layer: {option.precision: option.loss for option in choices} for layer, choices in options.items()}
    others = [
        (layer, option)
        for layer, choices in options.items()
        for option in choices
        if option.precision != current[layer] and option.num_bytes - least[layer] <= room
    ]
    others.sort(key=lambda pair: -abs(pair[1].loss - own[pair[0]][current[pair[0]]]))
    for layer, option in others:
        if asked.left <= TRIES:
            break
        change = asked({**current, layer: option.precision}) - loss
        found[layer].append(Option(option.precision, option.num_bytes, change))
    return found


def _candidates(
    found: Differences, current: Precisions, sizes: Mapping[str, Mapping[str, int]], most_bytes: float
) -> Iterator[dict[str, str]]:
    """Wholes that should be better, the knapsack's first, then one and two changes by what they should bring."""
    yield Frontier(found).within_bytes(most_bytes).precisions
    spent = sum(sizes[layer][precision] for layer, precision in current.items())
    changes = [
        (option.loss, option.num_bytes - sizes[layer][current[layer]], layer, option.precision)
        for layer, choices in found.items()
        for option in choices
        if option.precision != current[layer]
    ]
    sets = [(change,) for change in changes] + [
        pair for pair in itertools.combinations(changes, 2) if pair[0][2] != pair[1][2]
    ]
    fitting = [chosen for chosen in sets if spent + sum(change[1] for change in chosen) <= most_bytes]
    for chosen in sorted(fitting, key=lambda chosen: sum(change[0] for change in chosen)):
        yield {**current, **{layer: precision for _, _, layer, precision in chosen}}
