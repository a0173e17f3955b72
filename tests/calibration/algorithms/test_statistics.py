"""Sums over samples against the same values computed from all rows at once in float64."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.algorithms.statistics import Statistics, output_error
from model_repo.runtime.errors import BadInput

from .layers import layer, measured_error


def test_sums_over_samples_are_those_of_all_rows() -> None:
    inputs = layer(1, 33, rows=101).inputs
    gathered = Statistics(33)
    for part in (inputs[:7], inputs[7:8], inputs[8:70].reshape(2, 31, 33), inputs[70:]):
        gathered.add(part)
    wide = inputs.astype(np.float64)
    assert gathered.rows == 101
    np.testing.assert_allclose(gathered.hessian, wide.T @ wide / 101, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gathered.mean, wide.mean(axis=0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gathered.absolute_mean, np.abs(wide).mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(gathered.absolute_max, np.abs(inputs).max(axis=0))


def test_the_error_from_second_moments_is_that_of_the_outputs() -> None:
    case = layer(5, 24)
    other = case.weight + np.random.default_rng(1).standard_normal(case.weight.shape).astype(np.float32) / 50
    from_moments = output_error(other - case.weight, case.statistics.hessian)
    assert from_moments == pytest.approx(measured_error(other, case.weight, case.inputs), rel=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite_are_refused_with_the_layer_named(bad: float) -> None:
    inputs = np.ones((3, 4), np.float32)
    inputs[1, 2] = bad
    gathered = Statistics(4)
    with pytest.raises(BadInput, match=r"inputs of model.layers\.0\.mlp hold NaN or infinity"):
        gathered.add(inputs, "model.layers.0.mlp")
    assert gathered.rows == 0
    assert not gathered.second_moments.any()
