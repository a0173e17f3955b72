"""Requests of named tensors that a server captured: JSON lines, one request each (`model_repo.runtime.capture`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibration.data import read_utf8
from model_repo.runtime.capture import HEADER, decoded
from model_repo.runtime.contract import TensorSpec
from model_repo.runtime.errors import BadInput

from .base import Array, Found


def read_captured(path: Path, inputs: Sequence[TensorSpec], batched: bool) -> list[Found]:
    """The samples of a capture: each row of each request where rows are apart (`batched`), else each request.

    Raises BadInput, with the line's number, for what is no captured request and for tensors that the model does not
    take.
    """
    found: list[Found] = []
    for number, line in enumerate(read_utf8(path).splitlines(), 1):
        where = f"{path}, line {number},"
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(f"{where} is no JSON ({error}); a capture has one request a line") from error
        given = entry.get("tensors") if isinstance(entry, dict) else None
        if isinstance(entry, dict) and HEADER in entry:
            continue
        if not isinstance(given, dict):
            raise BadInput(
                f"{where} holds no tensors; a model of named tensors takes the requests that its own server captured, "
                "a .npz file or a folder of images"
            )
        arrays = {spec.name: _array(where, given, spec) for spec in inputs}
        found += _samples(where, arrays, batched)
        if batched and found and _shapes(found[-1]) != _shapes(found[0]):
            raise BadInput(
                f"{where} has other sizes than the requests before it: {_shapes(found[-1])}, {_shapes(found[0])}; rows "
                "are calibrated in batches of one size"
            )
    return found


def _shapes(sample: Found) -> dict[str, tuple[int, ...]]:
    assert not isinstance(sample.item, tuple)
    return {name: array.shape for name, array in sample.item.items()}


def _array(where: str, given: Mapping[str, Any], spec: TensorSpec) -> Array:
    """One input of a request. Raises BadInput when it is missing, broken, of another type or shape, or not finite."""
    if spec.name not in given:
        raise BadInput(f"{where} has no tensor {spec.name!r}; it has {', '.join(given) or 'none'}")
    try:
        array = decoded(given[spec.name])
    except ValueError as error:
        raise BadInput(f"{where} holds a broken {spec.name!r}: {error}") from error
    fits = array.ndim == len(spec.shape) and all(
        isinstance(dim, str) or dim == size for dim, size in zip(spec.shape, array.shape, strict=True)
    )
    if array.dtype.name != spec.dtype or not fits:
        wanted = ", ".join(map(str, spec.shape))
        raise BadInput(
            f"{where} has {spec.name!r} as {array.dtype.name} {list(array.shape)}; the model takes {spec.dtype} "
            f"[{wanted}]"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadInput(f"{where} holds NaN or infinity in {spec.name!r}")
    return array


def _samples(where: str, arrays: Mapping[str, Array], batched: bool) -> list[Found]:
    if not batched:
        return [Found(dict(arrays), 1, "")]
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise BadInput(f"{where} has different numbers of rows: {counts}")
    rows = range(next(iter(counts.values()), 0))
    return [Found({name: array[row : row + 1] for name, array in arrays.items()}, 1, "") for row in rows]
