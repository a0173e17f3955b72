"""Counts of a tensor's elements in bins whose width is a power of two.

Bin k of a side holds magnitudes in [k, k + 1) * width. Multiplying by a power of two is exact and bins of width w
nest in bins of width 2w, so that growing the range merges counts and loses nothing: the histogram is the one that all
elements at once would give, whatever the batches and their order. At the end BINS to 2 * BINS bins are in use up to the
largest magnitude. (ONNX Runtime and ModelOpt fix the width by the first batch and add bins: their number follows the
data, and the result the order.)
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .base import Array, finite_extremes, nothing_observed

BINS = 2048
"""Bins up to the largest magnitude, at least."""

_SIZE = 2 * BINS
_PIECE = 1 << 16
"""Elements that are worked on at once: their temporaries stay in the processor's cache."""
_LEAST_EXPONENT = -126
"""Of a width, so that its inverse is a float32: ranges below 2**-115 have fewer bins."""

Counts = npt.NDArray[np.int64]


class Histogram:
    """Both signs apart: `negative[k]` and `positive[k]` count magnitudes of bin k. Zero counts as positive."""

    def __init__(self) -> None:
        self._counts = np.zeros(
            2 * _SIZE, np.int64
        )  # negative magnitudes downwards, then positive ones upwards
        self._exponent: int | None = None  # width = 2**exponent; None while there were only zeros
        self.elements = 0
        self.low = np.float32(np.inf)
        self.high = np.float32(-np.inf)

    @property
    def width(self) -> float:
        """Of a bin; 1 while there were only zeros."""
        return 1.0 if self._exponent is None else math.ldexp(1.0, self._exponent)

    @property
    def positive(self) -> Counts:
        """Counts of elements from zero up, int64 [2 * BINS]."""
        return self._counts[_SIZE:]

    @property
    def negative(self) -> Counts:
        """Counts of elements below zero, by magnitude, int64 [2 * BINS]."""
        return self._counts[_SIZE - 1 :: -1]

    @property
    def magnitudes(self) -> Counts:
        """Counts of absolute values, up to the bin of the largest one; at least one bin."""
        both = self.positive + self.negative
        used = np.flatnonzero(both)
        return both[: int(used[-1]) + 1 if used.size else 1]

    def observe(self, array: Array) -> None:
        """Takes one batch in. Raises BadInput when it holds NaN or infinity."""
        if not array.size:
            return
        low, high = finite_extremes(array)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.elements += array.size
        self._make_room(max(abs(float(low)), abs(float(high))))
        flat = np.ascontiguousarray(array, np.float32).reshape(-1)
        if self._exponent is None:
            self._counts[_SIZE] += flat.size
            return
        inverse = np.float32(math.ldexp(1.0, -self._exponent))
        for start in range(0, flat.size, _PIECE):
            piece = flat[start : start + _PIECE]
            places = (piece * inverse).astype(np.int64)  # towards zero
            np.subtract(places, piece < 0, out=places, casting="unsafe")
            places += _SIZE
            self._counts += np.bincount(places, minlength=2 * _SIZE)

    def check(self) -> None:
        """Raises BadInput when nothing was observed."""
        if not self.elements:
            raise nothing_observed()

    def _make_room(self, amax: float) -> None:
        """Widens the bins, by merging neighbours, until `amax` falls into one."""
        if amax == 0.0:
            return
        exponent = max(math.frexp(amax)[1] - _SIZE.bit_length() + 1, _LEAST_EXPONENT)
        if self._exponent is None:
            self._exponent = exponent
        elif exponent > self._exponent:
            by = 1 << min(exponent - self._exponent, _SIZE.bit_length())
            merged = np.zeros_like(self._counts)
            kept = -(-_SIZE // by)
            for side, old in ((merged[_SIZE:], self.positive), (merged[_SIZE - 1 :: -1], self.negative)):
                padded = np.zeros(kept * by, np.int64)
                padded[:_SIZE] = old
                side[:kept] = padded.reshape(kept, by).sum(axis=1)
            self._counts, self._exponent = merged, exponent
