"""Tensors of an engine: name, dtype, shape. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Dim = int | str
"""A fixed size, or the name of a size known only at run time."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an engine: numpy dtype name, dimensions, and what it means."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    meaning: str = ""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TensorSpec:
        """The inverse of `dataclasses.asdict`. Raises TypeError or KeyError when it does not fit."""
        return cls(**{**data, "shape": tuple(data["shape"])})


@dataclass(frozen=True)
class AxisSpec:
    """A size known only at run time, by name: least and most that the model takes (None: no bound)."""

    name: str
    least: int = 1
    most: int | None = None
