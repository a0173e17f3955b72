"""Refinement against the best of all allocations counted out, where layers' losses do not add up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from calibration.allocation import Frontier, Option
from calibration.refining import TRIES, refine
from model_repo.runtime.errors import BadInput

PRECISIONS = ("int8", "int4")
LAYERS = 10


class Model:
    """Losses of layers, and what pairs cost beyond them when both are int4."""

    def __init__(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.sizes = draw.integers(2, 6, LAYERS)
        self.own = draw.uniform(0.5, 1.5, LAYERS)
        self.together = np.triu(draw.uniform(-0.4, 0.4, (LAYERS, LAYERS)), 1)
        self.calls = 0

    @property
    def options(self) -> dict[str, list[Option]]:
        return {
            f"layer{place}": [
                Option("int8", int(8 * self.sizes[place]), 0.0),
                Option("int4", int(4 * self.sizes[place]), float(self.own[place])),
            ]
            for place in range(LAYERS)
        }

    def loss(self, precisions: Mapping[str, str]) -> float:
        self.calls += 1
        small = np.array([name == "int4" for name in precisions.values()], float)
        return float(self.own @ small + small @ self.together @ small)

    def best(self, budget: float) -> float:
        found = []
        for names in itertools.product(PRECISIONS, repeat=LAYERS):
            size = sum(
                (8 if name == "int8" else 4) * own for name, own in zip(names, self.sizes, strict=True)
            )
            if size <= budget:
                found.append(self.loss(dict(enumerate(names))))
        return min(found)


@pytest.mark.parametrize("seed", range(6))
def test_it_comes_near_the_best_of_all_within_the_budget_and_its_measurements(seed: int) -> None:
    model = Model(seed)
    budget = 6.0 * float(model.sizes.sum())
    start = Frontier(model.options).within_bytes(budget)
    best, before = model.best(budget), model.loss(start.precisions)
    model.calls = 0
    told: list[tuple[int, int]] = []
    found = refine(
        model.options,
        start,
        budget,
        model.loss,
        measurements=100,
        advanced=lambda *counts: told.append(counts),
    )
    assert model.calls == found.measurements <= 100
    assert found.before == before
    assert model.loss(found.allocation.precisions) == found.measured <= before
    assert found.measured - best <= 0.5 * (before - best) + 1e-9
    assert found.allocation.num_bytes <= budget
    sizes = {layer: {option.precision: option for option in given} for layer, given in model.options.items()}
    picked = [sizes[layer][name] for layer, name in found.allocation.precisions.items()]
    assert found.allocation.num_bytes == sum(option.num_bytes for option in picked)
    assert found.allocation.loss == pytest.approx(sum(option.loss for option in picked))
    assert told[-1] == (100, 100)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize("measurements", [1, 2, TRIES, TRIES + 1, TRIES + 3, 25])
def test_it_stops_where_measurements_run_out(measurements: int) -> None:
    model = Model(3)
    budget = 6.0 * float(model.sizes.sum())
    start = Frontier(model.options).within_bytes(budget)
    found = refine(model.options, start, budget, model.loss, measurements=measurements)
    assert model.calls == found.measurements <= measurements
    assert found.measured <= found.before
    assert found.allocation.num_bytes <= budget


def test_losses_that_add_up_leave_the_allocation_as_it_is() -> None:
    model = Model(1)
    model.together[:] = 0
    budget = 6.0 * float(model.sizes.sum())
    start = Frontier(model.options).within_bytes(budget)
    found = refine(model.options, start, budget, model.loss, measurements=60)
    assert found.allocation.precisions == start.precisions


def test_precisions_beyond_the_budget_are_not_measured() -> None:
    options = {
        "a": [Option("fp32", 1000, 0.0), Option("int4", 10, 1.0)],
        "b": [Option("int8", 20, 0.1), Option("int4", 10, 1.0)],
    }
    seen: list[dict[str, str]] = []
    measure: Callable[[Mapping[str, str]], float] = lambda given: seen.append(dict(given)) or 1.0  # noqa: E731
    refine(options, Frontier(options).within_bytes(40), 40, measure, measurements=40)
    assert {given["a"] for given in seen} == {"int4"}


def test_no_measurement_is_refused() -> None:
    with pytest.raises(BadInput, match="0 measurements"):
        refine({}, Frontier({}).within_bytes(0), 0, lambda given: 0.0, measurements=0)
