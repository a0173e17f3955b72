"""The frontier against all allocations counted out, and budgets at and beyond its ends."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from calibration import allocation
from calibration.allocation import Frontier, Option
from model_repo.runtime.errors import BadInput


def layers(count: int, seed: int) -> dict[str, list[Option]]:
    """Bytes fall and losses rise with fewer bits, mostly: some precisions are of no use to a layer."""
    draw = np.random.default_rng(seed)
    return {
        f"layer{number}": [
            Option(name, int(bits * size), float(loss * draw.lognormal(0, 1)))
            for name, bits, loss in (("fp32", 32, 0.0), ("int8", 9, 0.01), ("int4", 5, 0.2), ("int3", 4, 0.3))
        ]
        for number, size in enumerate(draw.integers(1, 20, count))
    }


def everything(options: dict[str, list[Option]]) -> list[tuple[int, float]]:
    return [
        (sum(option.num_bytes for option in chosen), sum(option.loss for option in chosen))
        for chosen in itertools.product(*options.values())
    ]


@pytest.mark.parametrize("seed", range(5))
def test_every_budget_is_met_as_well_as_can_be(seed: int) -> None:
    options = layers(6, seed)
    frontier, every = Frontier(options), everything(options)
    sizes = sorted({size for size, _ in every})
    for budget in (*sizes[::50], sizes[-1], sizes[-1] + 10):
        found = frontier.within_bytes(budget)
        assert found.loss == pytest.approx(min(loss for size, loss in every if size <= budget), rel=1e-12)
        _consistent(found, options, budget)
    for most in (0.0, 0.01, 0.1, 0.5, 5.0):
        found = frontier.within_loss(most)
        assert found.num_bytes == min(size for size, loss in every if loss <= most + 1e-15)
        _consistent(found, options, np.inf)


def _consistent(found: allocation.Allocation, options: dict[str, list[Option]], budget: float) -> None:
    assert list(found.precisions) == list(options)
    chosen = [
        next(o for o in options[layer] if o.precision == name) for layer, name in found.precisions.items()
    ]
    assert sum(option.num_bytes for option in chosen) == found.num_bytes <= budget
    assert sum(option.loss for option in chosen) == pytest.approx(found.loss, rel=1e-12)


def test_the_frontier_is_every_point_that_no_other_beats() -> None:
    options = layers(5, 7)
    every = everything(options)
    frontier = Frontier(options)
    wanted = {
        size: loss
        for size, loss in every
        if not any((a <= size and b < loss) or (a < size and b <= loss) for a, b in every)
    }
    assert frontier.num_bytes.tolist() == sorted(wanted)
    np.testing.assert_allclose(frontier.losses, [wanted[size] for size in sorted(wanted)], rtol=1e-12)


def test_a_frontier_that_is_held_small_is_off_by_little(monkeypatch: pytest.MonkeyPatch) -> None:
    options = layers(12, 3)
    exact = Frontier(options)
    monkeypatch.setattr(allocation, "MOST_POINTS", 50)
    held = Frontier(options)
    assert len(held.num_bytes) <= 51 < len(exact.num_bytes)
    for share in (0.2, 0.4, 0.7):
        budget = exact.num_bytes[0] + share * (exact.num_bytes[-1] - exact.num_bytes[0])
        found = held.within_bytes(budget)
        _consistent(found, options, budget)
        assert found.loss <= 1.2 * exact.within_bytes(budget * 0.95).loss
    assert held.within_bytes(exact.num_bytes[0]).num_bytes == exact.num_bytes[0]


def test_budgets_that_cannot_be_kept_are_refused_with_the_least_that_can() -> None:
    frontier = Frontier({"a": [Option("int8", 100, 0.25), Option("int4", 60, 0.5)]})
    with pytest.raises(BadInput, match="59 bytes is too small: the layers take at least 60"):
        frontier.within_bytes(59)
    with pytest.raises(BadInput, match=r"at most 0\.2 cannot be had: the least is 0\.25"):
        frontier.within_loss(0.2)
