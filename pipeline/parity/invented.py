"""Inputs for a graph of which nothing is known but itself."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from model_repo.runtime.errors import BadInput
from plugins.schemas import DOMAIN, PAGED_ATTENTION

from .stepwise import Feeds

SEED = 7
SIZES = (3, 5, 4, 6)
"""What sizes known only at run time become, name by name."""
BINARY = 2
"""Whole numbers are below this where nothing says how large they may be: masks and flags are."""


def invented_feeds(model: ir.Model) -> Feeds:
    """One array for each input, the same at every call: normal numbers, whole numbers that index what they index.

    Raises BadInput for a decoder of the project, whose inputs depend on each other.
    """
    if any(node.domain == DOMAIN and node.op_type == PAGED_ATTENTION.name for node in model.graph):
        raise BadInput(
            "the inputs of a decoder's graph depend on each other; give the build's folder, the graph in it, or "
            "--inputs FILE.npz"
        )
    draw = np.random.default_rng(SEED)
    sizes: dict[str, int] = {}
    feeds = {}
    for value in model.graph.inputs:
        if value.const_value is not None:
            continue
        if value.dtype is None or value.shape is None:
            raise BadInput(f"the input {value.name!r} has no type or shape; give --inputs FILE.npz")
        shape = [_size(dim, sizes) for dim in value.shape]
        kind = np.dtype(value.dtype.numpy())
        if kind.kind == "f":
            feeds[value.name or ""] = draw.standard_normal(shape).astype(kind)
        elif kind.kind in "iub":
            feeds[value.name or ""] = draw.integers(0, _bound(value), shape).astype(kind)
        else:
            raise BadInput(f"the input {value.name!r} is of type {kind}; give --inputs FILE.npz")
    return feeds


def _size(dim: int | ir.SymbolicDim, sizes: dict[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    name = dim.value or f"unnamed {len(sizes)}"
    return sizes.setdefault(name, SIZES[len(sizes) % len(SIZES)])


def _bound(value: ir.Value) -> int:
    """One more than the largest index that `value` may hold: the rows of the table that it is looked up in."""
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        for node, place in current.uses():
            if node.op_type == "Gather" and place == 1 and node.inputs[0] is not None:
                axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
                shape = node.inputs[0].shape
                rows = None if shape is None else shape[axis]
                if isinstance(rows, int):
                    return rows
            if node.op_type in ("Cast", "Unsqueeze", "Squeeze", "Reshape", "Identity") and place == 0:
                waiting += [output for output in node.outputs if output not in seen]
                seen.update(node.outputs)
    return BINARY
