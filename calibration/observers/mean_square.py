"""The range whose codes are nearest to the numbers: the least mean squared error of quantizing."""

from __future__ import annotations

import numpy as np

from calibration.schemes import Scheme, dequantize, quantize
from model_repo.runtime.errors import BadInput

from .base import Array, Range, scale_of_range
from .histogram import Histogram

CANDIDATES = 128
"""Ranges tried: the whole one times k / CANDIDATES, for k from 1 on."""


class MeanSquare:
    """The factor f of the range whose error sum over bins of count * (center - quantized center)^2 is least.

    Both ends shrink by the same factor; the centers are those of the histogram's bins (`histogram.py`), less than
    half a bin, amax / 4096, from the numbers. The formula is ModelOpt's `mse`, with other candidates. Scales are what
    `scheme` makes of a range, so that it serves every format.
    """

    def __init__(self, scheme: Scheme) -> None:
        """Raises BadInput for schemes with block scales: their scales are not chosen by a range."""
        if scheme.granularity == "block":
            raise BadInput(
                f"{scheme} takes its scales from each block's numbers; nothing is to be calibrated"
            )
        self._scheme = scheme
        self._histogram = Histogram()

    def observe(self, array: Array) -> None:
        """See `Observer`."""
        self._histogram.observe(array)

    def range(self) -> Range:
        """See `Observer`."""
        histogram = self._histogram
        histogram.check()
        centers, counts = _centers(histogram)
        errors = [
            _error(centers, counts, self._scheme, _shrunk(histogram, k)) for k in range(1, CANDIDATES + 1)
        ]
        # Of equals the widest: nothing is cut off for nothing.
        return _shrunk(histogram, CANDIDATES - int(np.argmin(errors[::-1])))


def _shrunk(histogram: Histogram, k: int) -> Range:
    factor = np.float32(k / CANDIDATES)
    return Range(np.asarray(histogram.low * factor), np.asarray(histogram.high * factor))


def _centers(histogram: Histogram) -> tuple[Array, Array]:
    """Centers of the bins that are not empty, float32, and their counts."""
    up, down = np.flatnonzero(histogram.positive), np.flatnonzero(histogram.negative)
    magnitudes = np.concatenate((-(down + 0.5), up + 0.5)) * histogram.width
    # A bin may reach beyond the last number.
    centers = np.clip(magnitudes.astype(np.float32), histogram.low, histogram.high)
    return centers, np.concatenate((histogram.negative[down], histogram.positive[up]))


def _error(centers: Array, counts: Array, scheme: Scheme, span: Range) -> float:
    """Sum of the squared errors of all elements, in float64."""
    scales, zero_points = scale_of_range(span, scheme)
    tensor = Scheme(scheme.format, "tensor", symmetric=scheme.symmetric)
    stored = quantize(centers, tensor, scales, zero_points)
    away = dequantize(stored).astype(np.float64) - centers
    return float((away**2 * counts).sum())
