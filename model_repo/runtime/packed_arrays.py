"""Several arrays in one stretch of memory, so that one copy moves all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .device import ALIGNMENT


class Part(NamedTuple):
    """An array: its dtype by numpy's name."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class PackedArrays:
    """Where each of `parts` lies: one after the other from `start`, each at a multiple of `ALIGNMENT`."""

    def __init__(self, parts: Sequence[Part], start: int = 0) -> None:
        self.parts = tuple(parts)
        self.offsets: dict[str, int] = {}
        end = start
        for name, dtype, shape in self.parts:
            self.offsets[name] = end
            size = np.dtype(dtype).itemsize
            for length in shape:
                size *= length
            end += -(-size // ALIGNMENT) * ALIGNMENT
        self.end = end

    def views(self, memory: npt.NDArray[np.uint8]) -> Mapping[str, npt.NDArray[Any]]:
        """The arrays, in `memory` of at least `end` bytes."""
        return {
            part.name: np.ndarray(part.shape, part.dtype, memory, self.offsets[part.name])
            for part in self.parts
        }
