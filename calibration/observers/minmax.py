"""The whole range of what was seen, and its moving average over batches."""

from __future__ import annotations

import numpy as np

from .base import Array, Range, finite_extremes, nothing_observed


class MinMax:
    """low = min over all elements, high = max over all elements."""

    def __init__(self) -> None:
        self._seen: tuple[np.float32, np.float32] | None = None

    def observe(self, array: Array) -> None:
        """See `Observer`."""
        if not array.size:
            return
        low, high = finite_extremes(array)
        if self._seen is not None:
            low, high = min(self._seen[0], low), max(self._seen[1], high)
        self._seen = low, high

    def range(self) -> Range:
        """See `Observer`."""
        if self._seen is None:
            raise nothing_observed()
        return Range(*(np.asarray(end, np.float32) for end in self._seen))


class MovingAverage:
    """end_0 = the first batch's, end_t = end_{t-1} + weight * (batch's end - end_{t-1}), for both ends, in float64.

    What `torch.ao.quantization.MovingAverageMinMaxObserver` computes; a rare batch moves it little. The only range
    that depends on how samples are cut into batches.
    """

    def __init__(self, weight: float = 0.01) -> None:
        self._weight = weight
        self._ends: tuple[float, float] | None = None

    def observe(self, array: Array) -> None:
        """See `Observer`."""
        if not array.size:
            return
        low, high = (float(end) for end in finite_extremes(array))
        if self._ends is None:
            self._ends = low, high
            return
        self._ends = (
            self._ends[0] + self._weight * (low - self._ends[0]),
            self._ends[1] + self._weight * (high - self._ends[1]),
        )

    def range(self) -> Range:
        """See `Observer`."""
        if self._ends is None:
            raise nothing_observed()
        return Range(*(np.asarray(end, np.float32) for end in self._ends))
