"""Weights rearranged without being held: a transposed or packed weight is a recipe until it is written.

Each slice of a weight keeps its origin: the parameter and the rows of it that the slice holds. That is what
checkpoint import, adapters, sharding and parity reports find a parameter by.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from pipeline.contents import RowTensor
from pipeline.notes import ORIGIN

_TILE = 16
"""Rows turned at a time: few enough that their cache lines stay until all of each is used (five times as fast)."""


@dataclass(frozen=True)
class Origin:
    """One slice of a weight: rows [start, stop) of a parameter (None: all of them).

    `transposed`: the weight holds the slice as columns (its last axis counts the parameter's rows), so that
    a product needs no transposition. Otherwise the first axis counts them. `folded`: what was computed into
    the slice (parameters by name, numbers as '+ 1', 'rotation', 'awq factors'), which then is no longer the
    parameter's own. `equal`: parameters with the same numbers, which the weight stands for too.
    """

    parameter: str
    rows: tuple[int, int] | None
    transposed: bool
    folded: tuple[str, ...] = ()
    equal: tuple[str, ...] = ()


def read_origin(value: ir.Value) -> tuple[Origin, ...]:
    """Where the slices of a weight come from; empty when it comes from no parameter."""
    text = value.metadata_props.get(ORIGIN)
    if text is None and value.const_value is not None:
        text = value.const_value.metadata_props.get(ORIGIN)
    if text is None:
        return ()
    return tuple(
        Origin(
            item["parameter"],
            None if item["rows"] is None else (int(item["rows"][0]), int(item["rows"][1])),
            bool(item["transposed"]),
            tuple(item.get("folded", ())),
            tuple(item.get("equal", ())),
        )
        for item in json.loads(text)
    )


def write_origin(value: ir.Value, origins: Sequence[Origin]) -> None:
    """The inverse of `read_origin`."""
    value.metadata_props[ORIGIN] = json.dumps(
        [
            {
                "parameter": origin.parameter,
                "rows": None if origin.rows is None else list(origin.rows),
                "transposed": origin.transposed,
                **({"folded": list(origin.folded)} if origin.folded else {}),
                **({"equal": list(origin.equal)} if origin.equal else {}),
            }
            for origin in origins
        ]
    )


def transposed(weight: ir.Value) -> ir.LazyTensor:
    """The transpose of a matrix [rows, columns], made when it is written."""
    tensor, name = _tensor(weight), weight.name or ""
    rows, columns = tensor.shape.numpy()
    if isinstance(tensor, ir.LazyTensor):  # made once, as a whole
        return ir.LazyTensor(
            lambda: ir.tensor(_turned(tensor.numpy())), tensor.dtype, ir.Shape((columns, rows)), name=name
        )

    def make(start: int, stop: int) -> npt.NDArray[Any]:
        return _turned(tensor.numpy()[:, start:stop])

    return RowTensor(make, tensor.dtype, ir.Shape((columns, rows)), name)


def _turned(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The transpose, contiguous."""
    turned = np.empty(matrix.shape[::-1], matrix.dtype)
    for row in range(0, len(matrix), _TILE):
        turned[:, row : row + _TILE] = matrix[row : row + _TILE].T
    return turned


def transposed_origin(weight: ir.Value) -> tuple[Origin, ...]:
    """The origins of `transposed(weight)`."""
    return tuple(replace(origin, transposed=not origin.transposed) for origin in read_origin(weight))


def packed(parts: Sequence[ir.Value], name: str) -> ir.LazyTensor:
    """Weights one after the other along their last axis, made when they are written."""
    tensors = [_tensor(part) for part in parts]
    shapes = [tensor.shape.numpy() for tensor in tensors]
    shape = (*shapes[0][:-1], sum(size[-1] for size in shapes))

    if len(shape) == 1 or not all(map(_has_rows, tensors)):  # made once, as a whole
        return ir.LazyTensor(
            lambda: ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors], axis=-1)),
            tensors[0].dtype,
            ir.Shape(shape),
            name=name,
        )

    def make(start: int, stop: int) -> npt.NDArray[Any]:
        return np.concatenate([_rows(tensor, start, stop) for tensor in tensors], axis=-1)

    return RowTensor(make, tensors[0].dtype, ir.Shape(shape), name)


def _has_rows(tensor: ir.TensorProtocol) -> bool:
    """Whether some rows of the tensor can be had without making all of it."""
    return isinstance(tensor, RowTensor) or not isinstance(tensor, ir.LazyTensor)


def _rows(tensor: ir.TensorProtocol, start: int, stop: int) -> npt.NDArray[Any]:
    """Places [start, stop) of the first axis."""
    return tensor.rows(start, stop) if isinstance(tensor, RowTensor) else tensor.numpy()[start:stop]


def packed_origin(parts: Sequence[ir.Value]) -> tuple[Origin, ...]:
    """The origins of `packed(parts)`, with rows spelled out; empty unless every part has one."""
    origins: list[Origin] = []
    for part in parts:
        slices = read_origin(part)
        if not slices:
            return ()
        for origin in slices:
            # An origin without rows is the whole parameter, so it is the only slice of its part.
            rows = origin.rows or (0, _tensor(part).shape.numpy()[-1])
            origins.append(replace(origin, rows=rows))
    return tuple(origins)


def computed(
    shape: Sequence[int], dtype: ir.DataType, make: Callable[[], npt.NDArray[np.floating[Any]]], name: str
) -> ir.LazyTensor:
    """A weight that `make` computes when it is written, rounded once to `dtype`."""

    def rounded() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(make().astype(dtype.numpy())))

    return ir.LazyTensor(rounded, dtype, ir.Shape(shape), name=name)


def folded_origin(weight: ir.Value, into_it: Sequence[ir.Value]) -> tuple[Origin, ...]:
    """The origins of a weight computed from `weight` and others: these are noted as folded in."""
    names = tuple(origin.parameter for value in into_it for origin in read_origin(value))
    return tuple(replace(origin, folded=(*origin.folded, *names)) for origin in read_origin(weight))


def note_folded(weight: ir.Value, what: str) -> None:
    """Notes in the origins of a weight that `what` was computed into it; one without origins stays without."""
    origins = read_origin(weight)
    if origins:
        write_origin(weight, [replace(origin, folded=(*origin.folded, what)) for origin in origins])


def _tensor(weight: ir.Value) -> ir.TensorProtocol:
    tensor = weight.const_value
    assert tensor is not None, f"{weight.name} is no weight"
    return tensor
