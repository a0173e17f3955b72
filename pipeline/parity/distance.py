"""How far two tensors that should be the same are from each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MASKING = 1e30
"""Numbers beyond this stand for minus infinity in a mask; they say nothing about the size of the others."""


class Range(NamedTuple):
    """What a tensor holds, over all runs: the finite numbers' range, and how many are not finite."""

    name: str
    low: float
    high: float
    rms: float  # root of the mean square of the finite numbers
    elements: int
    not_finite: int

    def __str__(self) -> str:
        words = f"{self.name} in [{self.low:.4g}, {self.high:.4g}], rms {self.rms:.4g}"
        return f"{words}, {self.not_finite} of {self.elements} not finite" if self.not_finite else words


def distance(wanted: Sequence[Array], found: Sequence[Array]) -> float:
    """The largest difference of any row of any run, relative to the rows' size; 0: equal, inf: not finite.

    A row is a vector along the last axis. For numbers with a fraction the difference of a row is the L2 norm
    of what differs, divided by the root mean square of the L2 norms of all rows of `wanted` in that run: one
    wrong row among many counts in full, and a row of almost zeros is not held against rounding. For whole
    numbers and booleans it is the share of elements that differ. A number that is finite on one side only
    gives inf; the same infinity on both sides, or NaN on both, is no difference. Raises ValueError when the
    number of elements differs.
    """
    return max((_one(left, right) for left, right in zip(wanted, found, strict=True)), default=0.0)


def _one(wanted: Array, found: Array) -> float:
    if wanted.size != found.size:
        raise ValueError(f"{found.size} elements cannot be compared with {wanted.size}")
    if not wanted.size:
        return 0.0
    found = found.reshape(wanted.shape)
    if wanted.dtype.kind != "f" or found.dtype.kind != "f":
        return float((wanted != found).mean())
    width = wanted.shape[-1] if wanted.ndim else 1
    left = wanted.reshape(-1, width).astype(np.float64)
    right = found.reshape(-1, width).astype(np.float64)
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    finite = np.isfinite(left) & np.isfinite(right)
    if not (same | finite).all():
        return float("inf")
    gap = np.where(same, 0.0, np.where(finite, left, 0.0) - np.where(finite, right, 0.0))
    gaps = np.linalg.norm(gap, axis=1)
    if not gaps.any():
        return 0.0
    sizes = np.linalg.norm(np.where(finite & (np.abs(left) < MASKING), left, 0.0), axis=1)
    typical = float(np.sqrt(np.mean(sizes**2)))
    return float(gaps.max()) / typical if typical > 0 else float("inf")


def filled(wanted: Sequence[Array], found: Sequence[Array]) -> list[Array]:
    """`wanted` with the numbers of `found` where it is masked (`numpy.ma`): nobody knows what should be there."""
    return [
        np.where(np.ma.getmaskarray(left), right.reshape(left.shape), np.ma.getdata(left))
        if isinstance(left, np.ma.MaskedArray)
        else left
        for left, right in zip(wanted, found, strict=True)
    ]


def range_of(name: str, arrays: Sequence[Array]) -> Range | None:
    """The range of a tensor over all runs; None when it holds no numbers."""
    flat = [array.reshape(-1).astype(np.float64) for array in arrays if array.dtype.kind in "fiub"]
    every = np.concatenate(flat) if flat else np.empty(0)
    if not every.size:
        return None
    finite = every[np.isfinite(every)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    rms = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    return Range(name, low, high, rms, int(every.size), int(every.size - finite.size))


def not_finite(arrays: Sequence[Array]) -> int:
    """Elements that are NaN or infinite, over all runs."""
    return sum(int((~np.isfinite(array)).sum()) for array in arrays if array.dtype.kind == "f")
