"""AWQ: channels with large inputs are made larger before rounding, and ranges are clipped where that helps.

Lin et al. 2023, arXiv:2306.00978. Scale search: Q(W diag(s)) (diag(s)^-1 X), with

    s_j = (mean|X_j|)^alpha,  divided by sqrt(max s * min s);  alpha over 0, 0.05, ... 1

by the least squared error of the output. Clip search: for weights that share a scale, the range is made smaller by
the factor (1, 0.95, ... 0.5) with the least squared error of their part of the output. Both errors are computed
from the inputs' second moments H: a weight that is off by D makes outputs off by D H D^T in the mean.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.schemes import Quantized, Scheme

from .grid import FIXED_SCALES, Grid, grid_of, scaled_grid
from .statistics import output_error

Array = npt.NDArray[np.floating[Any]]

ALPHAS = tuple(step / 20 for step in range(21))
CLIPS = tuple(1 - step / 20 for step in range(11))


class ScaleSearch(NamedTuple):
    """Factors of a layer's input channels, and what they bring."""

    factors: npt.NDArray[np.float32]  # [in]; weights are multiplied by them, inputs divided
    alpha: float  # 0: all factors are 1
    error: float  # mean squared error of the outputs with these factors
    plain_error: float  # the same without factors


def search_scale(weight: Array, absolute_mean: Array, hessian: Array, scheme: Scheme) -> ScaleSearch:
    """The best factors for layers that share their inputs; `weight` [out, in] is all their weights stacked.

    `absolute_mean` [in] and `hessian` [in, in] are the inputs' mean magnitudes and mean second moments.
    """
    weight = weight.astype(np.float32)
    # A channel without input has no say; it is scaled as the least of the others.
    alive = absolute_mean > 0
    magnitude = np.where(alive, absolute_mean, absolute_mean[alive].min(initial=1.0))
    best: ScaleSearch | None = None
    for alpha in ALPHAS:
        powers = magnitude.astype(np.float64) ** alpha
        factors = (powers / np.sqrt(powers.max() * powers.min())).astype(np.float32)
        rounded = grid_of(weight * factors, scheme).values(weight * factors) / factors
        error = output_error(rounded - weight, hessian)
        plain = error if best is None else best.plain_error
        if best is None or error < best.error:
            best = ScaleSearch(factors, alpha, error, plain)
    assert best is not None
    return best


def search_clip(weight: Array, hessian: Array, scheme: Scheme) -> Grid:
    """The grid of `weight` [out, in] with each range made smaller by the best factor.

    Formats whose scales are coarse numbers themselves (nvfp4, mxfp8) keep the grid of round to nearest.
    """
    grid = grid_of(weight, scheme)
    if scheme.format in FIXED_SCALES:
        return grid
    factors = np.ones(grid.template.scales.shape, np.float32)
    least = group_errors(grid.values(weight) - weight, hessian, scheme)
    for clip in CLIPS[1:]:
        candidate = scaled_grid(weight, scheme, np.full_like(factors, clip))
        errors = group_errors(candidate.values(weight) - weight, hessian, scheme)
        better = errors < least
        factors = np.where(better, np.float32(clip), factors)
        least = np.where(better, errors, least)
    return scaled_grid(weight, scheme, factors)


def awq(weight: Array, hessian: Array, scheme: Scheme) -> Quantized:
    """`weight` [out, in], its channels scaled already, quantized with clipped ranges."""
    return search_clip(weight, hessian, scheme).quantized(weight)


def group_errors(difference: Array, hessian: Array, scheme: Scheme) -> npt.NDArray[np.float64]:
    """Squared output error of the weights behind each scale by themselves, of the scales' shape."""
    wide = difference.astype(np.float64)
    if scheme.granularity != "block":
        rows: npt.NDArray[np.float64] = np.einsum("oi,oi->o", wide @ hessian, wide)
        return rows if scheme.granularity == "channel" else np.asarray(rows.sum())
    assert scheme.block is not None
    errors = [
        np.einsum("oi,oi->o", wide[:, here] @ hessian[here, here], wide[:, here])
        for here in (slice(start, start + scheme.block) for start in range(0, wide.shape[1], scheme.block))
    ]
    return np.stack(errors, axis=1)
