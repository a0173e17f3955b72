"""Shapes that an operator's description leaves to be computed: those of its outputs, from its inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .library import DTYPES, Description, TensorDescription

_AXIS = re.compile(r"(?:(?P<factor>\d+)\*)?(?P<symbol>[a-z_]\w*)(?:/(?P<divisor>\d+))?(?:\+(?P<offset>\d+))?")
DTYPES_BY_NAME = {str(dtype).removeprefix("torch.").replace("_e4m3fn", "e4m3fn"): dtype for dtype in DTYPES}
"""dtypes by the names that descriptions use."""


def can_be_made(description: Description) -> bool:
    """Whether each output that must be there has a shape that the required inputs decide, and nothing is in-out."""
    required = [t for t in description.tensors if t.role == "input" and not t.optional]
    symbols = {symbol for t in required for axis in t.shape if (symbol := _plain_symbol(axis))}
    outputs = [t for t in description.tensors if t.role == "output" and not t.optional]
    return (
        bool(outputs)
        and all(t.role != "inout" or t.optional for t in description.tensors)
        and all(all(axis.isdigit() or _parsed(axis)[1] in symbols for axis in t.shape) for t in outputs)
    )


def new_outputs(description: Description, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Uninitialized tensors for the required outputs, beside the inputs. Needs `can_be_made`.

    An output whose type no input decides gets that of the first input if it may have it, else the first it may have.
    """
    symbols: dict[str, int] = {}
    types: dict[str, torch.dtype] = {}
    for parameter in description.tensors:
        tensor = tensors.get(parameter.name)
        if tensor is None or parameter.role != "input":
            continue
        types.setdefault(parameter.type, tensor.dtype)
        for axis, size in zip(parameter.shape, tensor.shape, strict=True):
            if not axis.isdigit() and not axis.startswith("1|"):
                factor, symbol, divisor, offset = _parsed(axis)
                symbols.setdefault(symbol, (size - offset) * divisor // factor)
    like = next(tensors[p.name] for p in description.tensors if p.name in tensors)

    def dtype(kind: str) -> torch.dtype:
        if kind in types or kind in DTYPES_BY_NAME:
            return types.get(kind) or DTYPES_BY_NAME[kind]
        allowed = [DTYPES_BY_NAME[name] for name in description.types[kind]]
        return like.dtype if like.dtype in allowed else allowed[0]

    return {
        p.name: like.new_empty(_shape(p, symbols), dtype=dtype(p.type))
        for p in description.tensors
        if p.role == "output" and not p.optional
    }


def _shape(parameter: TensorDescription, symbols: Mapping[str, int]) -> list[int]:
    shape = []
    for axis in parameter.shape:
        if axis.isdigit():
            shape.append(int(axis))
        else:
            factor, symbol, divisor, offset = _parsed(axis)
            shape.append(symbols[symbol] * factor // divisor + offset)
    return shape


def _parsed(axis: str) -> tuple[int, str, int, int]:
    """factor, symbol, divisor, offset of `factor*symbol/divisor+offset`."""
    match = _AXIS.fullmatch(axis.removeprefix("1|"))
    if match is None:
        raise ValueError(f"{axis!r} is no axis of a description")
    return int(match["factor"] or 1), match["symbol"], int(match["divisor"] or 1), int(match["offset"] or 0)


def _plain_symbol(axis: str) -> str | None:
    """The symbol that this axis decides."""
    return None if axis.isdigit() or axis.startswith("1|") else _parsed(axis)[1]
