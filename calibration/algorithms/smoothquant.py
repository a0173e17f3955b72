"""SmoothQuant: part of the outliers of a layer's inputs moves into its weight.

Xiao et al. 2022, arXiv:2211.10438. Y = (X diag(s)^-1) (diag(s) W^T), with

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

The division is folded into what makes X. alpha is searched: the one with the least squared error of the layers' outputs
when inputs and weights are both quantized; no smoothing is among the candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.schemes import Scheme, dequantize, quantize

Array = npt.NDArray[np.floating[Any]]

ALPHAS = tuple(step / 20 for step in range(21))
"""0, 0.05, ... 1."""


class Smoothing(NamedTuple):
    """Factors of a layer's input channels, and what they bring."""

    factors: npt.NDArray[np.float32]  # [in]; inputs are divided by them, weights multiplied
    alpha: float | None  # None: no factors are best, all are 1
    error: float  # mean squared error of the outputs with these factors
    plain_error: float  # the same without factors


def smoothing_factors(input_max: Array, weight_max: Array, alpha: float) -> npt.NDArray[np.float32]:
    """s of the formula from the largest magnitudes [in] of inputs and weights; 1 for channels that are all zero."""
    inputs, weights = input_max.astype(np.float64), weight_max.astype(np.float64)
    used = (inputs > 0) & (weights > 0)
    factors = np.ones_like(inputs)
    factors[used] = inputs[used] ** alpha / weights[used] ** (1 - alpha)
    result: npt.NDArray[np.float32] = factors.astype(np.float32)
    return result


def search_alpha(
    inputs: Array,
    weight: Array,
    weight_scheme: Scheme,
    input_scheme: Scheme,
    *,
    input_max: Array | None = None,
    alphas: Sequence[float] = ALPHAS,
) -> Smoothing:
    """The best factors for layers that share `inputs` [rows, in]; `weight` [out, in] is all their weights stacked.

    `input_max`: largest magnitude of each channel over all data, where `inputs` is a part of it.
    """
    inputs = inputs.astype(np.float32)
    weight = weight.astype(np.float32)
    highest = np.abs(inputs).max(axis=0) if input_max is None else input_max
    wanted = inputs @ weight.T
    ones = np.ones(inputs.shape[1], np.float32)
    plain = _error(inputs, weight, ones, wanted, weight_scheme, input_scheme)
    best = Smoothing(ones, None, plain, plain)
    for alpha in alphas:
        factors = smoothing_factors(highest, np.abs(weight).max(axis=0), alpha)
        error = _error(inputs, weight, factors, wanted, weight_scheme, input_scheme)
        if error < best.error:
            best = Smoothing(factors, alpha, error, plain)
    return best


def _error(
    inputs: Array, weight: Array, factors: Array, wanted: Array, weight_scheme: Scheme, input_scheme: Scheme
) -> float:
    """Mean over the rows of the squared error of the outputs."""
    x = dequantize(quantize(inputs / factors, input_scheme))
    w = dequantize(quantize(weight * factors, weight_scheme))
    return float(np.square(x @ w.T - wanted, dtype=np.float64).sum(axis=1).mean())
