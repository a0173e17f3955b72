"""HQQ against its objective, measured, and against a search over all zero points."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.algorithms.hqq import POWER, hqq
from calibration.schemes import Quantized, Scheme, dequantize, quantize


def heavy_tailed(out: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, (out, width)).astype(np.float32)


def cost(quantized: Quantized, weight: np.ndarray) -> np.ndarray:
    """Sum of |w - w_q|^p of each block of 16, in float64."""
    gap = np.abs(dequantize(quantized).astype(np.float64) - weight) ** POWER
    return gap.reshape(len(weight), -1, 16).sum(axis=2)


SCHEMES = [
    Scheme("int4", "block", 16),
    Scheme("int4", "block", 16, signed_scales=True),
    Scheme("int4", "block", 16, symmetric=False),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_no_block_is_worse_than_round_to_nearest_and_many_are_better(scheme: Scheme) -> None:
    weight = heavy_tailed(32, 64)
    plain, found = cost(quantize(weight, scheme), weight), cost(hqq(weight, scheme), weight)
    assert (found <= plain * (1 + 1e-6)).all()
    assert found.sum() < 0.99 * plain.sum()
    assert (found < plain * (1 - 1e-6)).mean() > 0.25


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_weights_of_a_layer_are_nearer_too(scheme: Scheme) -> None:
    weight = np.random.default_rng(1).standard_normal((48, 96)).astype(np.float32)
    errors = [
        np.square(dequantize(found) - weight).sum()
        for found in (hqq(weight, scheme), quantize(weight, scheme))
    ]
    assert errors[0] < 0.97 * errors[1]


def test_no_zero_point_would_be_better_at_the_scale_of_round_to_nearest() -> None:
    """All 16 tried for each block."""
    scheme = SCHEMES[-1]
    weight = heavy_tailed(24, 32, seed=1)
    plain, found = quantize(weight, scheme), hqq(weight, scheme)
    for zero in range(-8, 8):
        zeros = np.full(plain.scales.shape, zero, np.int32)
        other = cost(quantize(weight, scheme, plain.scales, zeros), weight)
        assert (cost(found, weight) <= other * (1 + 1e-6)).mean() > 0.95


@pytest.mark.parametrize("unit", [1e-4, 1e4])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_unit_of_the_weights_does_not_matter(scheme: Scheme, unit: float) -> None:
    weight = heavy_tailed(8, 32)
    same = np.float32(2.0) ** np.round(np.log2(unit))
    np.testing.assert_array_equal(hqq(weight * same, scheme).codes, hqq(weight, scheme).codes)


@pytest.mark.parametrize(
    "scheme", [Scheme("int4", "channel"), Scheme("int8", "tensor"), Scheme("uint8", "channel")], ids=str
)
def test_other_granularities_improve_the_same_measure(scheme: Scheme) -> None:
    weight = heavy_tailed(8, 40)

    def total(quantized: Quantized) -> float:
        return float((np.abs(dequantize(quantized).astype(np.float64) - weight) ** POWER).sum())

    assert total(hqq(weight, scheme)) < total(quantize(weight, scheme))


def test_coarse_scales_are_rounded_to_nearest_and_zeros_stay_zeros() -> None:
    scheme = Scheme("mxfp8", "block", 32)
    weight = heavy_tailed(4, 64)
    np.testing.assert_array_equal(dequantize(hqq(weight, scheme)), dequantize(quantize(weight, scheme)))
    assert not dequantize(hqq(np.zeros((4, 32), np.float32), SCHEMES[0])).any()
