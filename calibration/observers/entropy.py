"""The range whose codes lose the least information: KL divergence of the clipped histogram from its quantized self.

Migacz, 8-bit Inference with TensorRT (GTC 2017), over histograms of magnitudes. For each number of kept bins i:

    P = h[:i], with all that lies beyond added to its last bin
    Q = h[:i], its i bins dealt to the L levels (bin b to level floor(b * L / i)), each level's count spread evenly
        over those of its bins that are not empty
    i is the best whose KL(P || Q) = sum P log(P / Q), both normalized, is least (the largest such i); amax = i * width

L is the number of magnitudes that the format has: 128 for 8 bit, 8 for 4 bit. As in ModelOpt, bin 0 counts as bin 1
does: zero has a code of its own, and its many elements would decide all else. All i from L on are tried, each from
cumulative sums over L levels instead of over i bins.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from calibration.formats import FORMATS
from calibration.schemes import Scheme
from model_repo.runtime.errors import BadInput

from .base import Array, Range, clipped
from .histogram import Counts, Histogram

_CANDIDATES = 256
"""How many i are worked on at once; bounds the memory."""


class Entropy:
    """See the module."""

    def __init__(self, scheme: Scheme) -> None:
        """Raises BadInput for formats whose codes are not evenly spaced."""
        if not FORMATS[scheme.format].integer:
            raise BadInput(
                f"entropy calibration counts evenly spaced levels, and those of {scheme.format} are not; use mse, "
                "percentile or minmax"
            )
        self._levels = 1 << (scheme.bits - 1)
        self._histogram = Histogram()

    def observe(self, array: Array) -> None:
        """See `Observer`."""
        self._histogram.observe(array)

    def range(self) -> Range:
        """See `Observer`."""
        histogram = self._histogram
        histogram.check()
        amax = kept_bins(histogram.magnitudes, self._levels) * histogram.width
        return clipped(amax, histogram.low, histogram.high)


def kept_bins(counts: Counts, levels: int) -> int:
    """The best number of bins; all of them where there are no more than levels."""
    if len(counts) <= levels:
        return len(counts)
    counts = counts.copy()
    counts[0] = counts[1]
    candidates = np.arange(levels, len(counts) + 1)
    found = np.concatenate(
        [
            _divergences(counts, levels, candidates[start : start + _CANDIDATES])
            for start in range(0, len(candidates), _CANDIDATES)
        ]
    )
    return int(candidates[len(found) - 1 - int(found[::-1].argmin())])


def _divergences(counts: Counts, levels: int, kept: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """KL(P || Q) for each number of kept bins; infinite where Q is zero and P is not."""
    numbers = counts.astype(np.float64)
    before = np.concatenate(([0.0], np.cumsum(numbers)))
    filled = np.concatenate(([0], np.cumsum(counts > 0)))
    own = np.concatenate(([0.0], np.cumsum(_times_log(numbers, numbers))))
    total = before[-1]
    # Level j begins at the first bin b with floor(b * levels / kept) = j.
    borders = -(-np.arange(levels + 1) * kept[:, None] // levels)
    sums = np.diff(before[borders], axis=1)
    means = sums / np.maximum(np.diff(filled[borders], axis=1), 1)
    inside, last = before[kept], numbers[kept - 1]
    outside = total - inside
    # sum of p log p over the bins, the last one with all that lies beyond
    of_p = own[kept - 1] + _times_log(last + outside, last + outside)
    # sum of p log q: each level's bins have one q
    of_q = _times_log(sums, means).sum(axis=1) + _times_log(outside, means[:, -1])
    divergence = (of_p - of_q) / total - np.log(total) + np.log(np.maximum(inside, 1.0))
    lost = (outside > 0) & (last == 0)
    return np.where(lost | (inside == 0), np.inf, divergence)


def _times_log(factor: npt.NDArray[np.float64], number: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """factor * log(number), 0 where the factor is."""
    logarithm = np.log(number, out=np.zeros_like(number), where=number > 0)
    return factor * logarithm
