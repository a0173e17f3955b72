"""Rotations: Hadamard's own definition, and that outliers are spread."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.algorithms.hadamard import hadamard, rotation
from calibration.schemes import Scheme, dequantize, quantize

from .layers import layer, measured_error


@pytest.mark.parametrize("size", [1, 2, 4, 8, 12, 16, 20, 24, 28, 36, 40, 60, 64, 76, 256, 576])
def test_rows_of_ones_and_minus_ones_are_orthogonal(size: int) -> None:
    matrix = hadamard(size)
    assert matrix is not None
    assert set(np.unique(matrix)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(matrix @ matrix.T, size * np.eye(size))


@pytest.mark.parametrize("size", [3, 5, 6, 10, 14, 18, 7])
def test_there_is_none_where_mathematics_has_none(size: int) -> None:
    """Orders beyond 2 are multiples of 4."""
    assert hadamard(size) is None


@pytest.mark.parametrize("size", [1, 2, 3, 6, 48, 52, 100, 256, 576])
def test_a_rotation_is_orthogonal_and_the_same_for_its_seed(size: int) -> None:
    turned = rotation(size, seed=3)
    np.testing.assert_allclose(turned @ turned.T, np.eye(size), atol=1e-12)
    np.testing.assert_array_equal(turned, rotation(size, seed=3))
    assert size == 1 or not np.array_equal(turned, rotation(size, seed=4))


def test_every_entry_has_one_size_where_a_hadamard_matrix_exists() -> None:
    np.testing.assert_allclose(np.abs(rotation(576)), 1 / 24)


def test_outliers_are_spread_and_rounding_hurts_less() -> None:
    """x W^T = (x R) (W R)^T: per-token int8 of inputs with outliers."""
    case = layer(32, 64, outlier=60)
    turned = rotation(64)
    inputs, weight = (case.inputs @ turned).astype(np.float32), (case.weight @ turned).astype(np.float32)
    np.testing.assert_allclose(inputs @ weight.T, case.inputs @ case.weight.T, rtol=1e-4, atol=1e-3)
    spread = np.abs(inputs).max(axis=1) / np.sqrt(np.square(inputs).mean(axis=1))
    before = np.abs(case.inputs).max(axis=1) / np.sqrt(np.square(case.inputs).mean(axis=1))
    assert np.median(spread) < 0.8 * np.median(before)
    token = Scheme("int8", "token")
    plain = dequantize(quantize(case.inputs, token)) - case.inputs
    after = dequantize(quantize(inputs, token)) - inputs
    assert np.square(after).mean() < 0.7 * np.square(plain).mean()


def test_a_weight_with_outliers_is_rounded_with_less_error() -> None:
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((32, 64)).astype(np.float32)
    weight[:, ::16] *= 10
    inputs = draw.standard_normal((200, 64)).astype(np.float32)
    turned = rotation(64)
    scheme = Scheme("int4", "channel")
    errors = []
    for w, x in (
        (weight, inputs),
        ((weight @ turned).astype(np.float32), (inputs @ turned).astype(np.float32)),
    ):
        errors.append(measured_error(dequantize(quantize(w, scheme)), w, x))
    assert errors[1] < 0.5 * errors[0]
