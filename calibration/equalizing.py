"""Cross-layer equalization of a graph's convolutions: neighbours share the ranges of the channels between them.

Nagel et al. 2019, arXiv:1906.04721, section 4.1; the formula is in `algorithms/equalization.py`. Pairs are convolutions
with nothing between them but an activation that lets positive factors through, read by nobody else; chains of pairs are
gone through until no factor moves a range by more than TOLERANCE. Batch normalization is part of the convolution before
it already (stage fuse).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .algorithms.equalization import equalize
from .linear_layers import is_weight, replace_weight

ACTIVATIONS = ("Relu", "LeakyRelu", "Identity")
"""f(s x) = s f(x) for every s above zero."""
TOLERANCE = 1e-3
MOST_TURNS = 100


class ConvPair(NamedTuple):
    """Two convolutions, the second of which reads the first one's channels."""

    first: ir.Node
    second: ir.Node


def pairs(model: ir.Model) -> list[ConvPair]:
    """In the order of computation. Convolutions whose weights others read are left out."""
    found = []
    for second in model.graph:
        if not _is_own_conv(second):
            continue
        value = second.inputs[0]
        first = _before(model, value)
        if first is not None and first.op_type in ACTIVATIONS and first.domain in ("", "ai.onnx"):
            first = _before(model, first.inputs[0])
        if first is not None and _is_own_conv(first):
            found.append(ConvPair(first, second))
    return found


def equalize_convolutions(model: ir.Model) -> list[str]:
    """Equalizes all pairs, in place; gives the names of the weights that changed."""
    every, changed = pairs(model), dict[str, None]()
    for _ in range(MOST_TURNS):
        moved = 0.0
        for pair in every:
            weights = [pair.first.inputs[1], pair.second.inputs[1]]
            bias = pair.first.inputs[2] if len(pair.first.inputs) > 2 else None
            result = equalize(
                _numbers(weights[0]),
                None if bias is None else _numbers(bias),
                _numbers(weights[1]),
                pair.second.attributes.get_int("group", 1),
            )
            most = float(np.abs(np.log(result.factors)).max())
            if most <= TOLERANCE:
                continue
            moved = max(moved, most)
            for value, array in zip(
                (*weights, bias), (result.first, result.second, result.bias), strict=True
            ):
                if value is not None and array is not None:
                    replace_weight(value, array)
                    changed[value.name or ""] = None
        if moved == 0:
            break
    return list(changed)


def _before(model: ir.Model, value: ir.Value | None) -> ir.Node | None:
    """What makes `value`, when only one node reads it."""
    if value is None or value in model.graph.outputs or len(value.uses()) != 1:
        return None
    return value.producer()


def _is_own_conv(node: ir.Node) -> bool:
    """A convolution whose constants nobody else reads."""
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
        return False
    return all(value is None or (is_weight(value) and len(value.uses()) == 1) for value in node.inputs[1:])


def _numbers(value: ir.Value | None) -> npt.NDArray[np.float32]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float32)
