"""Arrays: an .npz with one array for each input of a model of named tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_repo.runtime.contract import TensorSpec
from model_repo.runtime.errors import BadInput

from .base import Array, Found


def read_arrays(path: Path, inputs: Sequence[TensorSpec], batched: bool) -> list[Found]:
    """Samples along axis 0 of every array.

    That axis is the model's own batch axis (`batched`), or one more than an input has. Raises BadInput when an input
    is missing, of another type or shape, or the arrays hold different numbers of samples.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{path} is not a readable .npz file: {error}") from error
    columns: dict[str, list[Array]] = {}
    for spec in inputs:
        if spec.name not in arrays:
            raise BadInput(
                f"{path} has no array {spec.name!r}; it has {', '.join(arrays) or 'none'}, and the model takes "
                f"{', '.join(known.name for known in inputs)}"
            )
        columns[spec.name] = _rows(path, spec, arrays[spec.name], batched)
    counts = {name: len(rows) for name, rows in columns.items()}
    if len(set(counts.values())) > 1:
        raise BadInput(
            f"{path} holds different numbers of samples: {counts}; axis 0 of every array counts them"
        )
    return [
        Found(dict(zip(columns, rows, strict=True)), 1, "") for rows in zip(*columns.values(), strict=True)
    ]


def _rows(path: Path, spec: TensorSpec, array: Array, batched: bool) -> list[Array]:
    """Each sample as the model takes it."""
    shape = spec.shape[1:] if batched else spec.shape
    fits = array.ndim == len(shape) + 1 and all(
        isinstance(dim, str) or dim == size for dim, size in zip(shape, array.shape[1:], strict=True)
    )
    if array.dtype.name != spec.dtype or not fits:
        wanted = ", ".join(map(str, ("samples", *shape)))
        raise BadInput(
            f"{path}: the array {spec.name!r} is {array.dtype.name} {list(array.shape)}; it must be {spec.dtype} "
            f"[{wanted}]"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadInput(f"{path}: the array {spec.name!r} holds NaN or infinity")
    return [row[None] if batched else row for row in array]
