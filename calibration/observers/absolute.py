"""Largest absolute values: of each channel, and of each token."""

from __future__ import annotations

import numpy as np

from .base import Array, Range, finite_extremes, nothing_observed


class AbsMax:
    """amax_c = max |x| over all elements of channel c, the index along `axis` (default: the last one).

    What SmoothQuant and AWQ weigh channels by. `range` is -amax to amax, float32 [channels].
    """

    def __init__(self, axis: int = -1) -> None:
        self._axis = axis
        self._amax: Array | None = None

    def observe(self, array: Array) -> None:
        """See `Observer`. The number of channels is that of the first batch."""
        if not array.size:
            return
        finite_extremes(array)
        others = tuple(place for place in range(array.ndim) if place != self._axis % array.ndim)
        amax = np.abs(array).max(axis=others).astype(np.float32)
        self._amax = amax if self._amax is None else np.maximum(self._amax, amax)

    def range(self) -> Range:
        """See `Observer`."""
        if self._amax is None:
            raise nothing_observed()
        return Range(-self._amax, self._amax)


class TokenAbsMax:
    """max |x| of each token, a row along the last axis: what a dynamic scale per token is made of.

    Kept are the largest (`range`), the smallest and the mean: far apart, they say that one scale for all tokens
    would waste codes.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self.smallest = float("inf")
        self.largest = 0.0
        self._sum = 0.0

    @property
    def mean(self) -> float:
        """Mean over all tokens of their largest absolute value."""
        return self._sum / self.tokens

    def observe(self, array: Array) -> None:
        """See `Observer`."""
        if not array.size:
            return
        finite_extremes(array)
        rows = np.abs(array).max(axis=-1)
        self.tokens += rows.size
        self.smallest = min(self.smallest, float(rows.min()))
        self.largest = max(self.largest, float(rows.max()))
        self._sum += float(rows.sum(dtype=np.float64))

    def range(self) -> Range:
        """See `Observer`."""
        if not self.tokens:
            raise nothing_observed()
        amax = np.asarray(self.largest, np.float32)
        return Range(-amax, amax)
