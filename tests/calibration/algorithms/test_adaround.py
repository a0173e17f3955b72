"""AdaRound against all choices of up and down where they can be counted, and against round to nearest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from calibration.algorithms.adaround import adaround
from calibration.algorithms.grid import grid_of
from calibration.schemes import Scheme, dequantize, quantize
from model_repo.runtime.errors import BadInput

from .layers import layer, measured_error


def test_it_comes_near_the_best_of_all_choices() -> None:
    """Ten weights a row: 1024 choices."""
    case = layer(24, 10, outlier=3)
    scheme = Scheme("int4", "channel")
    hessian = case.statistics.hessian
    grid = grid_of(case.weight, scheme)
    found = dequantize(adaround(case.weight, hessian, scheme))
    plain = dequantize(quantize(case.weight, scheme))
    choices = np.array(list(itertools.product((0.0, 1.0), repeat=10)))
    best, mine, start = 0.0, 0.0, 0.0
    for row in range(24):
        step = grid.steps[row, 0]
        values = np.clip(np.floor(case.weight[row] / step) + choices, -8, 7) * step - case.weight[row]
        best += float(np.einsum("ci,ij,cj->c", values, hessian, values).min())
        for total, rounded in (("mine", found), ("start", plain)):
            gap = rounded[row].astype(np.float64) - case.weight[row]
            error = float(gap @ hessian @ gap)
            mine, start = (mine + error, start) if total == "mine" else (mine, start + error)
    assert best <= mine + 1e-9
    assert start - mine > 0.75 * (start - best)


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme("int4", "block", 16),
        Scheme("int4", "block", 16, signed_scales=True),
        Scheme("int4", "block", 16, symmetric=False),
        Scheme("uint8", "channel"),
    ],
    ids=str,
)
def test_it_beats_round_to_nearest_and_stays_next_to_each_weight(scheme: Scheme) -> None:
    case = layer(16, 48)
    plain = dequantize(quantize(case.weight, scheme))
    found = adaround(case.weight, case.statistics.hessian, scheme)
    error = measured_error(dequantize(found), case.weight, case.inputs)
    assert error < 0.5 * measured_error(plain, case.weight, case.inputs)
    grid = grid_of(case.weight, scheme)
    steps = np.abs(grid.steps) * 1.001
    assert np.abs(dequantize(found) - case.weight).max() <= steps.max()
    assert (np.abs(dequantize(found) - case.weight) <= steps + np.abs(plain - case.weight)).all()


def test_no_row_is_worse_than_rounded_to_nearest_even_without_iterations() -> None:
    case = layer(12, 32)
    scheme = Scheme("int4", "channel")
    plain = dequantize(quantize(case.weight, scheme))
    for iterations in (0, 20):
        found = dequantize(adaround(case.weight, case.statistics.hessian, scheme, iterations=iterations))
        for row in range(12):
            here = slice(row, row + 1)
            assert measured_error(found[here], case.weight[here], case.inputs) <= measured_error(
                plain[here], case.weight[here], case.inputs
            ) * (1 + 1e-4)


def test_formats_without_a_common_step_are_refused() -> None:
    with pytest.raises(BadInput, match="e4m3 does not have"):
        adaround(np.ones((2, 4), np.float32), np.eye(4), Scheme("e4m3", "channel"))
