"""Figures of how far two runs on the same inputs are from each other, and whether that is near enough."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from model_repo.runtime.errors import GateFailed

if TYPE_CHECKING:
    from pipeline.recipe import Tolerance

Rows = Sequence[npt.NDArray[np.float32]]
"""One array [rows, width] an input: logits of each token of a prompt, or the embedding of a text."""

TIE = 1e-4
"""Logits nearer than this are a tie: float32 rounding over a whole network may put either first."""


def compare(reference: Rows, candidate: Rows, against: str, top1: bool) -> dict[str, Any]:
    """Figures over all rows, for the manifest.

    `min_cosine` is the least cosine of any row, `max_abs_difference` the largest of any element, `top1` (for
    rows that are logits) the share of rows whose largest element has the same place, or one that ties with it
    in the reference (`TIE`); `ties` counts the latter. Values that are not finite count as cosine -1. Raises
    ValueError when the shapes differ.
    """
    if [rows.shape for rows in reference] != [rows.shape for rows in candidate]:
        shapes = [[rows.shape for rows in run] for run in (candidate, reference)]
        raise ValueError(f"outputs of shapes {shapes[0]} cannot be compared with {shapes[1]}")
    cosines: list[npt.NDArray[np.float64]] = []
    same: list[npt.NDArray[np.bool_]] = []
    tied: list[npt.NDArray[np.bool_]] = []
    difference = 0.0
    for wanted, found in zip(reference, candidate, strict=True):
        cosines.append(cosine_by_row(wanted, found))
        choice = found.argmax(axis=1)
        same.append(wanted.argmax(axis=1) == choice)
        tied.append(wanted.max(axis=1) - np.take_along_axis(wanted, choice[:, None], axis=1)[:, 0] <= TIE)
        largest = float(np.abs(wanted - found).max(initial=0.0))
        difference = max(difference, largest) if math.isfinite(largest) else math.inf
    every = np.concatenate(cosines)
    figures: dict[str, Any] = {
        "against": against,
        "rows": int(every.size),
        "min_cosine": float(every.min()),
        "mean_cosine": float(every.mean()),
        # JSON knows no infinity.
        "max_abs_difference": difference if math.isfinite(difference) else "not finite",
    }
    if top1:
        equal, close = np.concatenate(same), np.concatenate(tied)
        figures["top1"] = float((equal | close).mean())
        figures["ties"] = int((close & ~equal).sum())
    return figures


def cosine_by_row(wanted: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Cosine of each pair of rows in float64; -1 where a value is not finite; 1 where both rows are zero."""
    left, right = wanted.astype(np.float64), found.astype(np.float64)
    finite = np.asarray(np.isfinite(left).all(axis=1) & np.isfinite(right).all(axis=1))
    kept = finite.reshape(-1, 1)
    left, right = np.where(kept, left, 0.0), np.where(kept, right, 0.0)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    both_zero = ~left.any(axis=1) & ~right.any(axis=1)
    cosine = np.divide((left * right).sum(axis=1), lengths, out=np.zeros(len(left)), where=lengths > 0)
    return np.where(finite, np.where(both_zero, 1.0, cosine), -1.0)


def gate(stage: str, parity: Mapping[str, Any] | str, tolerance: Tolerance, setting: str = "") -> None:
    """Raises GateFailed when measured figures are outside the tolerance; what was not run is not judged.

    `setting`: the recipe's field that holds the tolerance, where it is not called as the stage.
    """
    if isinstance(parity, str):
        return
    cosine, top1 = float(parity["min_cosine"]), float(parity.get("top1", 1.0))
    relative = parity.get("max_relative_difference", 0.0)  # named tensors; words when it is not finite
    far = isinstance(relative, str) or not relative <= tolerance.max_relative
    # Negated comparisons, so that a NaN fails.
    if not cosine >= tolerance.min_cosine or not top1 >= tolerance.min_top1 or far:
        asked = f"cosine at least {tolerance.min_cosine}"
        found = f"least cosine {cosine:.8f}"
        if "top1" in parity:
            asked += f", top-1 at least {tolerance.min_top1:.2%}"
            found += f", top-1 {top1:.2%}"
        if "max_relative_difference" in parity:
            asked += f", relative difference at most {tolerance.max_relative:g}"
            found += f", largest relative difference {relative}"
        raise GateFailed(
            f"{stage} differs from {parity['against']}: {found}, largest difference "
            f"{parity['max_abs_difference']} over {parity['rows']} rows; the recipe asks for {asked}. "
            f"Nothing was published; parity.{setting or stage} in the recipe holds the tolerance"
        )


def in_words(parity: Mapping[str, Any] | str) -> str:
    """One short line for tables."""
    if isinstance(parity, str):
        return parity
    words = f"cosine {parity['min_cosine']:.7f}"
    return f"{words}, top-1 {parity['top1']:.1%}" if "top1" in parity else words
