"""AWQ's searches against trying everything and measuring outputs."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.algorithms.awq import ALPHAS, CLIPS, awq, search_clip, search_scale
from calibration.algorithms.rtn import round_to_nearest
from calibration.schemes import Scheme, dequantize, quantize

from .layers import layer, measured_error

INT4 = Scheme("int4", "block", 16)


def test_the_scale_is_the_best_of_the_papers_candidates_by_the_outputs() -> None:
    case = layer(16, 64)
    found = search_scale(case.weight, case.statistics.absolute_mean, case.statistics.hessian, INT4)
    errors = []
    for alpha in ALPHAS:
        factors = np.abs(case.inputs.astype(np.float64)).mean(axis=0) ** alpha
        factors = (factors / np.sqrt(factors.max() * factors.min())).astype(np.float32)
        rounded = dequantize(quantize(case.weight * factors, INT4)) / factors
        errors.append(measured_error(rounded, case.weight, case.inputs))
    assert found.alpha == ALPHAS[int(np.argmin(errors))]
    assert found.error == pytest.approx(min(errors), rel=1e-3)
    assert found.plain_error == pytest.approx(errors[0], rel=1e-3)


def test_scaling_beats_round_to_nearest_where_channels_stand_out() -> None:
    case = layer(32, 64)
    found = search_scale(case.weight, case.statistics.absolute_mean, case.statistics.hessian, INT4)
    assert found.error < 0.7 * found.plain_error
    assert found.alpha > 0


def test_folded_factors_leave_the_float_outputs() -> None:
    case = layer(16, 64)
    factors = search_scale(case.weight, case.statistics.absolute_mean, case.statistics.hessian, INT4).factors
    wanted = case.inputs @ case.weight.T
    np.testing.assert_allclose(
        (case.inputs / factors) @ (case.weight * factors).T, wanted, rtol=1e-5, atol=1e-5
    )


def test_channels_without_input_do_not_break_the_search() -> None:
    case = layer(8, 32)
    mean, hessian = case.statistics.absolute_mean.copy(), case.statistics.hessian.copy()
    mean[5], hessian[5], hessian[:, 5] = 0, 0, 0
    found = search_scale(case.weight, mean, hessian, INT4)
    assert np.isfinite(found.factors).all()
    assert (found.factors > 0).all()
    assert np.isfinite(search_scale(case.weight, np.zeros(32), np.zeros((32, 32)), INT4).factors).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_each_block_has_the_best_clip(symmetric: bool) -> None:
    """Tried one by one: the part of the output that a block makes, over all clips."""
    case = layer(5, 48, seed=2)
    scheme = Scheme("int4", "block", 16, symmetric)
    found = dequantize(awq(case.weight, case.statistics.hessian, scheme))
    plain = quantize(case.weight, scheme)
    for row in range(5):
        for number, start in enumerate(range(0, 48, 16)):
            part = case.weight[row : row + 1, start : start + 16]
            inputs = case.inputs[:, start : start + 16]
            zeros = (
                None if plain.zero_points is None else plain.zero_points[row : row + 1, number : number + 1]
            )
            errors = [
                measured_error(
                    dequantize(
                        quantize(
                            part,
                            scheme,
                            plain.scales[row : row + 1, number : number + 1] * np.float32(clip),
                            zeros,
                        )
                    ),
                    part,
                    inputs,
                )
                for clip in CLIPS
            ]
            mine = measured_error(found[row : row + 1, start : start + 16], part, inputs)
            assert mine == pytest.approx(min(errors), rel=1e-3)


@pytest.mark.parametrize(
    "scheme",
    [
        INT4,
        Scheme("int4", "block", 16, signed_scales=True),
        Scheme("int4", "channel"),
        Scheme("int4", "tensor"),
    ],
    ids=str,
)
def test_clipping_is_never_worse_for_what_shares_a_scale(scheme: Scheme) -> None:
    case = layer(16, 48)
    found = dequantize(awq(case.weight, case.statistics.hessian, scheme))
    plain = dequantize(round_to_nearest(case.weight, scheme))
    width = scheme.block or 48
    for start in range(0, 48, width):
        here = slice(start, start + width)
        assert measured_error(found[:, here], case.weight[:, here], case.inputs[:, here]) <= measured_error(
            plain[:, here], case.weight[:, here], case.inputs[:, here]
        ) * (1 + 1e-5)


def test_scales_that_are_coarse_numbers_are_left() -> None:
    case = layer(4, 32)
    scheme = Scheme("nvfp4", "block", 16)
    grid = search_clip(case.weight, case.statistics.hessian, scheme)
    np.testing.assert_array_equal(grid.template.scales, quantize(case.weight, scheme).scales)
    assert grid.template.tensor_scale == quantize(case.weight, scheme).tensor_scale
