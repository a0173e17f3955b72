"""Files named by the sha256 of their content, and tensors that are made a piece at a time on their way there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

PIECE_BYTES = 32 << 20
"""What is held of a tensor that is made a piece at a time."""

Array: TypeAlias = npt.NDArray[Any]


class RowTensor(ir.LazyTensor):
    """A tensor whose rows (places on its first axis) are computed when they are written, some at a time.

    `rows(start, stop)` gives [stop - start, ...] of the tensor's dtype. Asked for whole, it is made whole each time.
    """

    def __init__(
        self, rows: Callable[[int, int], Array], dtype: ir.DataType, shape: ir.Shape, name: str
    ) -> None:
        count = int(shape.numpy()[0])
        super().__init__(lambda: ir.tensor(rows(0, count)), dtype, shape, name=name)
        self.rows = rows

    def pieces(self) -> Iterator[memoryview]:
        """The tensor's little-endian bytes, at most about `PIECE_BYTES` at a time."""
        count = int(self.shape.numpy()[0])
        step = max(1, PIECE_BYTES * count // max(1, self.nbytes))
        for start in range(0, count, step):
            yield raw_bytes(self.rows(start, min(start + step, count)))


def raw_bytes(array: Array) -> memoryview:
    """An array's little-endian bytes, without a copy where its memory allows that."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def store(data: memoryview, folder: Path) -> tuple[str, int]:
    """Makes sure that `folder` holds `data`; gives its sha256 and the bytes newly written. Raises OSError."""
    digest = hashlib.sha256(data).hexdigest()
    target = folder / digest
    if target.exists() and target.stat().st_size == len(data):
        return digest, 0
    return store_pieces([data], folder)


def store_pieces(pieces: Iterable[memoryview], folder: Path) -> tuple[str, int]:
    """As `store`, for data that comes in pieces: it is written while its name is found. Whole or not at all."""
    digest = hashlib.sha256()
    count = 0
    temporary = folder / f".weight.{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
                count += len(piece)
        target = folder / digest.hexdigest()
        if target.exists() and target.stat().st_size == count:
            return target.name, 0
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target.name, count
