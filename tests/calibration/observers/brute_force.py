"""The observers' definitions, written down once more: all elements at once, float64, no cumulative sums."""

from __future__ import annotations

import math

import numpy as np

from calibration.observers.histogram import BINS


def bin_width(values: np.ndarray) -> float:
    """The power of two of which the largest magnitude takes BINS to 2 * BINS."""
    return 2.0 ** (math.floor(math.log2(float(np.abs(values).max()))) - int(math.log2(BINS)))


def magnitude_counts(values: np.ndarray) -> np.ndarray:
    """Elements by bin of their magnitude, up to the largest one's."""
    places = np.floor(np.abs(values.astype(np.float64)) / bin_width(values)).astype(int)
    counts = np.zeros(places.max() + 1, np.int64)
    np.add.at(counts, places.reshape(-1), 1)
    return counts


def kl_divergence(counts: np.ndarray, levels: int, kept: int) -> float:
    """KL of the clipped histogram from the quantized one, bin by bin."""
    reference = counts[:kept].astype(np.float64)
    reference[-1] += counts[kept:].sum()
    level_of = [bin_ * levels // kept for bin_ in range(kept)]
    quantized = np.zeros(kept)
    for level in range(levels):
        members = [b for b in range(kept) if level_of[b] == level and counts[b] > 0]
        for b in members:
            quantized[b] = sum(int(counts[m]) for m in members) / len(members)
    if quantized.sum() == 0:
        return math.inf
    reference /= reference.sum()
    quantized /= quantized.sum()
    total = 0.0
    for p, q in zip(reference, quantized, strict=True):
        if p > 0:
            total += math.inf if q == 0 else p * math.log(p / q)
    return total


def int8_error(values: np.ndarray, scale: float) -> float:
    """Sum of squared errors of symmetric int8 codes, in float64."""
    codes = np.clip(np.rint(values.astype(np.float64) / scale), -127, 127)
    return float(((codes * scale - values) ** 2).sum())
