"""Runs graphs of named tensors, and how far two such runs are from each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from model_repo.runtime.contract import TensorSpec

from .compare import cosine_by_row

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

SMALL = 1e-3
"""Norm that rows of zeros are taken to have: where all should be zero, rounding is not held against them."""

ROUNDING = 1e-4
"""Relative difference that rounding to float32 makes; a row this near has a cosine of 1 within 1e-8 anyway."""


def save_runs(path: Path, runs: Sequence[Feeds]) -> None:
    """Writes the inputs of all runs to one .npz; `load_runs` reads them back."""
    arrays = {
        f"{run}.{place}": array
        for run, feeds in enumerate(runs)
        for place, array in enumerate(feeds.values())
    }
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for its own options


def load_runs(path: Path, inputs: Sequence[TensorSpec]) -> list[dict[str, Array]]:
    """The runs in an .npz of `save_runs`, by input name."""
    with np.load(path) as arrays:
        count = len(arrays.files) // len(inputs)
        return [
            {spec.name: arrays[f"{run}.{place}"] for place, spec in enumerate(inputs)} for run in range(count)
        ]


def run_tensors(session: ort.InferenceSession, runs: Sequence[Feeds]) -> list[Array]:
    """The outputs of all runs one after another, each run's in the graph's order."""
    found: list[Array] = []
    for feeds in runs:
        found.extend(np.asarray(array) for array in session.run(None, dict(feeds)))
    return found


def compare_tensors(reference: Sequence[Array], candidate: Sequence[Array], against: str) -> dict[str, Any]:
    """Figures over all outputs of all runs, for the manifest; a row is what lies at one place of axis 0.

    As `compare`, and beside the cosine, which does not see a row's length, `max_relative_difference`: the largest
    norm of a difference over the norm of what it should be, or over the root mean square of all rows' norms where
    that is larger (what nearly cancels out is rounded at the size of what cancels). Integers and booleans must be
    equal: their 'cosine' is the share of a row's elements that are. Raises ValueError when shapes or types differ.
    """
    shapes = [[(array.shape, array.dtype.name) for array in run] for run in (candidate, reference)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"outputs of {shapes[0]} cannot be compared with {shapes[1]}")
    cosines: list[npt.NDArray[np.float64]] = []
    relative = difference = 0.0
    for wanted, found in zip(reference, candidate, strict=True):
        if not wanted.size:
            continue
        left, right = _rows(wanted), _rows(found)
        if wanted.dtype.kind == "f":
            left, right = _comparable(left, right)
            rows, largest = _distances(left, right)
            far, difference = float(rows.max()), max(difference, largest)
            # Rows that are equal but for rounding point the same way, even where both are nearly zero.
            cosines.append(np.where(rows <= ROUNDING, 1.0, cosine_by_row(left, right)))
        else:
            unequal = (left != right).mean(axis=1)
            far = float(unequal.max())
            cosines.append(1.0 - unequal)
        relative = max(relative, far)
    every = np.concatenate(cosines) if cosines else np.ones(1)
    return {
        "against": against,
        "rows": int(every.size),
        "min_cosine": float(every.min()),
        "mean_cosine": float(every.mean()),
        "max_abs_difference": _json(difference),
        "max_relative_difference": _json(relative),
    }


def _json(value: float) -> float | str:
    return value if math.isfinite(value) else "not finite"  # JSON knows no infinity


def _rows(array: Array) -> Array:
    """[rows, width]; a vector is one row."""
    if array.ndim < 2:
        return array.reshape(1, -1)
    return array.reshape(array.shape[0], -1)


def _comparable(left: Array, right: Array) -> tuple[Array, Array]:
    """Values that are equal although not finite (a mask's -inf) count as 0 on both sides."""
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    hidden = same & ~np.isfinite(left)
    return np.where(hidden, 0, left), np.where(hidden, 0, right)


def _distances(left: Array, right: Array) -> tuple[npt.NDArray[np.float64], float]:
    """Relative difference of each row, and the largest of an element; infinite where only one side is finite."""
    wanted, found = left.astype(np.float64), right.astype(np.float64)
    if not (np.isfinite(wanted).all() and np.isfinite(found).all()):
        return np.full(len(wanted), math.inf), math.inf
    away, norms = np.linalg.norm(wanted - found, axis=1), np.linalg.norm(wanted, axis=1)
    typical = max(float(np.sqrt(np.mean(norms**2))), SMALL)
    return away / np.maximum(norms, typical), float(np.abs(wanted - found).max())
