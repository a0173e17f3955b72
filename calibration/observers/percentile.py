"""The range that all but a share of the elements lie in."""

from __future__ import annotations

import math

import numpy as np

from model_repo.runtime.errors import BadInput

from .base import Array, Range, clipped
from .histogram import Counts, Histogram


class Percentile:
    """Symmetric: amax = upper edge of the first bin up to which at least `percent` % of the magnitudes lie.

    Asymmetric: half of the rest is left out at each end. Never further than the numbers went. The edge is less than
    a bin, amax / 2048, above the exact percentile.
    """

    DEFAULT = 99.99

    def __init__(self, percent: float = DEFAULT, symmetric: bool = True) -> None:
        """Raises BadInput unless 0 < percent <= 100."""
        if not 0 < percent <= 100:
            raise BadInput(f"the percentile is {percent!r}; it must be above 0 and at most 100")
        self._percent = percent
        self._symmetric = symmetric
        self._histogram = Histogram()

    def observe(self, array: Array) -> None:
        """See `Observer`."""
        self._histogram.observe(array)

    @property
    def _left_out(self) -> int:
        """Elements that may lie outside; what rounding makes of a whole number is taken for it."""
        return math.floor(self._histogram.elements * (100 - self._percent) / 100 + 1e-6)

    def range(self) -> Range:
        """See `Observer`."""
        histogram = self._histogram
        histogram.check()
        if self._symmetric:
            kept = histogram.elements - self._left_out
            amax = _bins(histogram.magnitudes, kept) * histogram.width
            return clipped(amax, histogram.low, histogram.high)
        cut = self._left_out // 2
        return Range(
            np.asarray(_low_end(histogram, cut), np.float32),
            np.asarray(_high_end(histogram, cut), np.float32),
        )


def _bins(counts: Counts, kept: int) -> int:
    """Bins from the first on that hold at least `kept` elements."""
    return int(np.searchsorted(np.cumsum(counts), kept)) + 1


def _high_end(histogram: Histogram, cut: int) -> float:
    """`cut` elements at most lie above it."""
    above = int(histogram.positive.sum())
    if cut < above:
        return min(_bins(histogram.positive, above - cut) * histogram.width, float(histogram.high))
    return -(_bins(histogram.negative, cut - above + 1) - 1) * histogram.width


def _low_end(histogram: Histogram, cut: int) -> float:
    """`cut` elements at most lie below it."""
    below = int(histogram.negative.sum())
    if cut < below:
        return max(-_bins(histogram.negative, below - cut) * histogram.width, float(histogram.low))
    return (_bins(histogram.positive, cut - below + 1) - 1) * histogram.width
