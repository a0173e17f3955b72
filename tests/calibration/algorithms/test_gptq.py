"""GPTQ against the paper's procedure with an explicit inverse, exhaustive search, and round to nearest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from calibration.algorithms.gptq import DAMPING, gptq, inverse_factor
from calibration.algorithms.grid import grid_of
from calibration.algorithms.rtn import round_to_nearest
from calibration.schemes import Scheme, dequantize
from model_repo.runtime.errors import BadInput

from .layers import Array, layer, measured_error

INT4 = Scheme("int4", "block", 16)
SCHEMES = [
    INT4,
    Scheme("int4", "block", 16, signed_scales=True),
    Scheme("int4", "block", 16, symmetric=False),
    Scheme("int4", "channel"),
    Scheme("int8", "channel"),
    Scheme("uint8", "channel"),
    Scheme("uint8", "channel", symmetric=False),
    Scheme("int8", "tensor"),
    Scheme("e4m3", "channel"),
    Scheme("nvfp4", "block", 16),
    Scheme("mxfp8", "block", 32),
]


def column_by_column(
    weight: Array, hessian: Array, scheme: Scheme, order: list[int], damping: float
) -> Array:
    """Optimal brain quantization in a fixed order: after each column the inverse of what is left is formed anew."""
    damped = hessian + damping * np.diag(hessian).mean() * np.eye(len(hessian))
    plain = round_to_nearest(weight, scheme)
    grid = grid_of(weight, scheme)
    assert np.array_equal(grid.values(weight), dequantize(plain))
    rest, chosen = weight.astype(np.float64), np.zeros(weight.shape)
    for step, column in enumerate(order):
        left = order[step:]
        inverse = np.linalg.inv(damped[np.ix_(left, left)])
        chosen[:, column] = grid.values(rest[:, column], column)
        error = (rest[:, column] - chosen[:, column]) / inverse[0, 0]
        rest[:, left] -= np.outer(error, inverse[0])
    return chosen


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_it_is_the_papers_procedure(scheme: Scheme, act_order: bool) -> None:
    case = layer(6, 48)
    hessian = case.statistics.hessian
    order = list(np.argsort(-np.diag(hessian), kind="stable")) if act_order else list(range(48))
    wanted = column_by_column(case.weight, hessian, scheme, order, DAMPING)
    found = dequantize(gptq(case.weight, hessian, scheme, act_order=act_order, block=7))
    # A number on the edge between two codes may fall to either side in float64's last place.
    assert (np.abs(found - wanted) > 1e-6).mean() <= 0.01
    assert measured_error(found, case.weight, case.inputs) == pytest.approx(
        measured_error(wanted, case.weight, case.inputs), rel=0.01
    )


@pytest.mark.parametrize("block", [1, 5, 48, 128])
def test_blocks_of_updates_change_nothing(block: int) -> None:
    case = layer(6, 48, seed=3)
    one = gptq(case.weight, case.statistics.hessian, INT4, block=16)
    other = gptq(case.weight, case.statistics.hessian, INT4, block=block)
    assert (one.codes != other.codes).mean() <= 0.005


@pytest.mark.parametrize("seed", range(8))
def test_two_columns_are_as_good_as_any_choice(seed: int) -> None:
    """The second column is rounded best given the first; the first is off its best by one step at most."""
    draw = np.random.default_rng(seed)
    weight = draw.standard_normal((4, 2)).astype(np.float32)
    inputs = draw.standard_normal((50, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
    hessian = inputs.T @ inputs / 50
    scheme = Scheme("int4", "channel")
    grid = grid_of(weight, scheme)
    found = dequantize(gptq(weight, hessian, scheme, damping=0.0))
    first = int(np.argmax(np.diag(hessian)))
    for row in range(4):
        step = grid.steps[row, 0]
        values = [code * step for code in range(-8, 8)]
        given_first = {
            (a, b): _row_error(np.array([a, b]) if first == 0 else np.array([b, a]), weight[row], hessian)
            for a, b in itertools.product(values, values)
        }
        mine = _row_error(found[row], weight[row], hessian)
        nearest = min(values, key=lambda value: abs(value - weight[row, first]))
        assert mine == pytest.approx(
            min(error for (a, _), error in given_first.items() if a == nearest), rel=1e-3, abs=1e-7
        )
        assert mine <= _row_error(grid.values(weight)[row], weight[row], hessian) + 1e-7


def _row_error(candidate: Array, row: Array, hessian: Array) -> float:
    gap = candidate.astype(np.float64) - row
    return float(gap @ hessian @ gap)


@pytest.mark.parametrize(
    "scheme",
    [
        INT4,
        Scheme("int4", "block", 16, signed_scales=True),
        Scheme("int4", "channel"),
        Scheme("int8", "channel"),
    ],
    ids=str,
)
def test_it_beats_round_to_nearest_on_correlated_inputs(scheme: Scheme) -> None:
    case = layer(32, 64)
    plain = measured_error(dequantize(round_to_nearest(case.weight, scheme)), case.weight, case.inputs)
    found = dequantize(gptq(case.weight, case.statistics.hessian, scheme))
    assert measured_error(found, case.weight, case.inputs) < 0.5 * plain


def test_act_order_helps_where_channels_differ() -> None:
    cases = [layer(16, 64, seed=seed) for seed in range(5)]
    errors = {
        order: sum(
            measured_error(
                dequantize(gptq(case.weight, case.statistics.hessian, INT4, act_order=order)),
                case.weight,
                case.inputs,
            )
            for case in cases
        )
        for order in (True, False)
    }
    assert errors[True] < errors[False]


def test_channels_that_are_always_zero_are_rounded_and_move_nothing() -> None:
    case = layer(6, 32)
    inputs = case.inputs.copy()
    inputs[:, [3, 17]] = 0
    hessian = inputs.T.astype(np.float64) @ inputs / len(inputs)
    grid = grid_of(case.weight, INT4)
    found = gptq(case.weight, hessian, INT4)
    np.testing.assert_array_equal(dequantize(found)[:, [3, 17]], grid.values(case.weight)[:, [3, 17]])


def test_fewer_samples_than_channels_still_have_a_result() -> None:
    case = layer(4, 40, rows=5)
    hessian = case.statistics.hessian
    assert np.linalg.matrix_rank(hessian, tol=1e-3) == 5
    for damping in (DAMPING, 0.0):
        found = dequantize(gptq(case.weight, hessian, INT4, damping=damping))
        plain = dequantize(round_to_nearest(case.weight, INT4))
        assert measured_error(found, case.weight, case.inputs) < measured_error(
            plain, case.weight, case.inputs
        )


def test_the_factor_gives_the_inverse() -> None:
    hessian = layer(1, 30).statistics.hessian
    upper = inverse_factor(hessian)
    assert np.array_equal(upper, np.triu(upper)) or np.abs(np.tril(upper, -1)).max() < 1e-12
    damped = hessian + DAMPING * np.diag(hessian).mean() * np.eye(30)
    np.testing.assert_allclose(upper.T @ upper @ damped, np.eye(30), atol=1e-9)


@pytest.mark.parametrize("hessian", [np.eye(3), np.full((4, 4), np.nan)], ids=["shape", "nan"])
def test_second_moments_that_do_not_fit_are_refused(hessian: Array) -> None:
    with pytest.raises(BadInput, match="second moments"):
        gptq(np.ones((2, 4), np.float32), hessian, Scheme("int8", "channel"))
