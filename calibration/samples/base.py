"""What sources give and what calibration takes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Item = tuple[int, ...] | Mapping[str, Array]
"""Token ids, or an array for each input."""


class Found(NamedTuple):
    """One sample of a source. `size`: its tokens, or 1. `domain`: '' where nobody labelled it."""

    item: Item
    size: int
    domain: str

    @property
    def digest(self) -> bytes:
        """sha256 of the content: equal samples have equal ones, on every machine."""
        if isinstance(self.item, tuple):
            return hashlib.sha256(np.asarray(self.item, "<i8").tobytes()).digest()
        digest = hashlib.sha256()
        for name, array in sorted(self.item.items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}\0".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.digest()


@dataclass(frozen=True)
class Samples:
    """Chosen samples: `items` for `calibration.batches.Batches`, the sha256 of them all, the name of their source."""

    source: str
    items: tuple[Item, ...]
    tokens: int
    sha256: str
    domains: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """What a manifest keeps."""
        return {
            "source": self.source,
            "samples": len(self.items),
            "tokens": self.tokens,
            "sha256": self.sha256,
            "domains": dict(self.domains),
        }
