"""Weights rearranged without being held: a transposed or packed weight is a recipe until it is written.

Each slice of a weight keeps its origin: the parameter and the rows of it that the slice holds. That is what
checkpoint import, adapters, sharding and parity reports find a parameter by.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pipeline.notes import ORIGIN


@dataclass(frozen=True)
class Origin:
    """One slice of a weight: rows [start, stop) of a parameter (None: all of them).

    `transposed`: the weight holds the slice as columns (its last axis counts the parameter's rows), so that
    a product needs no transposition. Otherwise the first axis counts them.
    """

    parameter: str
    rows: tuple[int, int] | None
    transposed: bool


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
            }
            for origin in origins
        ]
    )


def transposed(weight: ir.Value) -> ir.LazyTensor:
    """The transpose of a matrix [rows, columns], made when it is written."""
    tensor = _tensor(weight)
    rows, columns = tensor.shape.numpy()

    def make() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(tensor.numpy().T))

    return ir.LazyTensor(make, tensor.dtype, ir.Shape((columns, rows)), name=weight.name)


def transposed_origin(weight: ir.Value) -> tuple[Origin, ...]:
    """The origins of `transposed(weight)`."""
    return tuple(
        Origin(origin.parameter, origin.rows, not origin.transposed) for origin in read_origin(weight)
    )


def packed(parts: Sequence[ir.Value], name: str) -> ir.LazyTensor:
    """Weights one after the other along their last axis, made when they are written."""
    tensors = [_tensor(part) for part in parts]
    shapes = [tensor.shape.numpy() for tensor in tensors]
    shape = (*shapes[0][:-1], sum(size[-1] for size in shapes))

    def make() -> ir.TensorProtocol:
        return ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors], axis=-1))

    return ir.LazyTensor(make, tensors[0].dtype, ir.Shape(shape), name=name)


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
            origins.append(Origin(origin.parameter, rows, origin.transposed))
    return tuple(origins)


def _tensor(weight: ir.Value) -> ir.TensorProtocol:
    tensor = weight.const_value
    assert tensor is not None, f"{weight.name} is no weight"
    return tensor
