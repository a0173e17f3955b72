"""SmoothQuant's factors against its formula, its search against measuring each candidate."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.algorithms.smoothquant import ALPHAS, search_alpha, smoothing_factors
from calibration.schemes import Scheme, dequantize, quantize

from .layers import layer, measured_error

WEIGHT, TOKEN = Scheme("int8", "channel"), Scheme("int8", "token")


def test_at_a_half_both_sides_have_one_range() -> None:
    """The paper's own reading of alpha = 0.5."""
    case = layer(12, 32)
    inputs, weights = np.abs(case.inputs).max(axis=0), np.abs(case.weight).max(axis=0)
    factors = smoothing_factors(inputs, weights, 0.5)
    np.testing.assert_allclose(inputs / factors, weights * factors, rtol=1e-5)


def test_dead_channels_keep_their_factor() -> None:
    factors = smoothing_factors(np.array([2.0, 0.0, 3.0]), np.array([0.5, 1.0, 0.0]), 0.5)
    np.testing.assert_allclose(factors, [2.0, 1.0, 1.0])


@pytest.mark.parametrize("input_scheme", [TOKEN, Scheme("int8", "tensor")], ids=str)
def test_the_search_finds_the_least_error(input_scheme: Scheme) -> None:
    case = layer(24, 64, outlier=40)
    found = search_alpha(case.inputs, case.weight, WEIGHT, input_scheme)
    ranges = (
        np.abs(case.inputs.astype(np.float64)).max(axis=0),
        np.abs(case.weight.astype(np.float64)).max(axis=0),
    )
    candidates = {None: np.ones(64)} | {
        alpha: ranges[0] ** alpha / ranges[1] ** (1 - alpha) for alpha in ALPHAS
    }
    errors = {}
    for alpha, factors in candidates.items():
        factors = factors.astype(np.float32)
        x = dequantize(quantize(case.inputs / factors, input_scheme)).astype(np.float64)
        w = dequantize(quantize(case.weight * factors, WEIGHT)).astype(np.float64)
        exact = case.inputs.astype(np.float64) @ case.weight.T.astype(np.float64)
        errors[alpha] = float(np.square(x @ w.T - exact).sum(axis=1).mean())
    assert found.alpha == min(errors, key=errors.__getitem__)
    assert found.error == pytest.approx(min(errors.values()), rel=1e-2)
    assert found.plain_error == pytest.approx(errors[None], rel=1e-2)
    assert found.error < 0.3 * found.plain_error


def test_folded_factors_leave_the_float_outputs() -> None:
    case = layer(16, 64, outlier=40)
    factors = search_alpha(case.inputs, case.weight, WEIGHT, TOKEN).factors
    smoothed = (case.weight * factors).astype(np.float32)
    exact = case.inputs @ case.weight.T
    assert measured_error(smoothed / factors, case.weight, case.inputs) < 1e-9
    np.testing.assert_allclose((case.inputs / factors) @ smoothed.T, exact, rtol=1e-5, atol=1e-5)


def test_inputs_that_need_nothing_are_left_alone() -> None:
    """Sixteen values that int8 holds exactly: any factors would only add rounding."""
    draw = np.random.default_rng(0)
    inputs = draw.choice((-127.0, 127.0, 64.0), (50, 16)).astype(np.float32)
    weight = draw.choice((-127.0, 127.0, 1.0), (8, 16)).astype(np.float32)
    inputs[:, 0], weight[:, 0] = 127.0, 127.0
    found = search_alpha(inputs, weight, WEIGHT, TOKEN)
    assert found.alpha is None
    assert found.error == found.plain_error == 0
    np.testing.assert_array_equal(found.factors, np.ones(16))
