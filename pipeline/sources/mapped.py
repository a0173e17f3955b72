"""A checkpoint in float32 without holding it: each tensor becomes a file of its own, and stays mapped from there.

What a model's export writes are its weights in float32, files named by their content. They are written before the
model is made, a piece of a tensor at a time, and the model's parameters are those files: pages that the system can
let go of, so a checkpoint may be larger than memory, and nothing is left to write when the graph is saved.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.contents import PIECE_BYTES, raw_bytes, store_pieces

from .checkpoint import read_header

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = npt.NDArray[Any]

_LENGTH_BYTES = 8


def _from_bfloat16(piece: Array) -> Array:
    """bfloat16 is the upper half of a float32."""
    wide = piece.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


_FLOATS: Mapping[str, tuple[Any, Callable[[Array], Array]]] = {
    "F32": (np.dtype("<f4"), lambda piece: piece),
    "F16": (np.dtype("<f2"), lambda piece: piece.astype(np.float32)),
    "BF16": (np.dtype("<u2"), _from_bfloat16),
}
"""What a piece of such a tensor is read as, and how it becomes float32."""

_OTHERS: Mapping[str, Any] = {
    "BOOL": np.dtype("?"), "U8": np.dtype("u1"), "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8"),
}  # fmt: skip
"""Tensors that no weights are, such as counts of positions; they are read as they are."""


def mapped_tensors(files: Sequence[Path], folder: Path) -> dict[str, Tensor] | None:
    """Every tensor of the safetensors `files` by name, floats as float32, written to `folder/<sha256>` and mapped.

    None when a file is of another format or a tensor of another type (8 bit floats, packed 4 bit numbers): these
    are left to transformers. Writing to such a tensor changes this process's copy of a page only. The files are read
    once in a process. Raises BadInput for a broken file, OSError.
    """
    if any(path.suffix != ".safetensors" for path in files):
        return None
    for path in files:
        if any(entry["dtype"] not in {**_FLOATS, **_OTHERS} for entry in read_header(path).values()):
            return None
    folder.mkdir(parents=True, exist_ok=True)
    return {name: tensor for path in files for name, tensor in _of_file(path, folder.absolute()).items()}


@functools.cache
def _of_file(path: Path, folder: Path) -> Mapping[str, Tensor]:
    tensors = {}
    header = read_header(path)
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(_LENGTH_BYTES))
        for name, entry in header.items():
            file.seek(_LENGTH_BYTES + length + int(entry["data_offsets"][0]))
            tensors[name] = _tensor(file, entry, folder)
    return tensors


def _tensor(file: BinaryIO, entry: Mapping[str, Any], folder: Path) -> Tensor:
    """The tensor whose data begins where `file` stands."""
    import torch

    shape = [int(size) for size in entry["shape"]]
    start, stop = entry["data_offsets"]
    if entry["dtype"] in _OTHERS or start == stop:
        kind = _OTHERS.get(entry["dtype"], np.dtype(np.float32))
        return torch.from_numpy(np.frombuffer(bytearray(file.read(stop - start)), kind)).reshape(shape)
    digest, _ = store_pieces(_pieces(file, entry["dtype"], stop - start), folder)
    count = int(np.prod(shape, dtype=np.int64))
    return torch.from_file(str(folder / digest), shared=False, size=count, dtype=torch.float32).reshape(shape)


def _pieces(file: BinaryIO, dtype: str, size: int) -> Iterator[memoryview]:
    """The next `size` bytes of `file` as float32, a piece at a time."""
    kind, convert = _FLOATS[dtype]
    while size:
        data = file.read(min(size, PIECE_BYTES // 2))  # at most twice as long in float32
        if not data:
            raise OSError(f"{file.name} ended while it was read")
        size -= len(data)
        yield raw_bytes(convert(np.frombuffer(data, kind)))
