"""Factors and summands of a convolution's channels go into its weight and bias.

BatchNormalization in inference (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167) is one of each:
(x - mean) / sqrt(variance + epsilon) * scale + shift.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .matching import (
    add_weight,
    dims,
    float_attribute,
    insert_before,
    integer_attribute,
    is_weight,
    node_name,
    only_reader,
    other_input,
    output,
    replace,
)
from .rule import Matches, NearMiss, Rule
from .weights import computed, folded_origin, write_origin

Array = npt.NDArray[np.float64]


class _Affine(NamedTuple):
    """x * factor + summand, channel by channel, as the node `last` does it with `weights`."""

    last: ir.Node
    weights: tuple[ir.Value, ...]
    factor: Callable[[], Array] | None  # [channels]
    summand: Callable[[], Array] | None


class ConvAffine(Rule):
    """Anchored at a Conv; runs on through a chain of nodes that it can take in."""

    name: ClassVar[str] = "conv_affine"

    def rewrite(self, model: ir.Model) -> Matches:
        """Counts the nodes taken in; what the Conv's result is read by besides is a near miss."""
        count, missed = 0, []
        for node in list(model.graph):
            conv = node
            while conv.op_type == "Conv" and conv.domain == "":
                found = _follows(conv)
                if isinstance(found, str):
                    missed.append(NearMiss(node_name(conv), found))
                if not isinstance(found, _Affine):
                    break
                conv = _taken_in(model.graph, conv, found)
                count += 1
        return Matches(count, tuple(missed))


def _follows(conv: ir.Node) -> _Affine | str | None:
    """What follows a Conv and could be taken in, or why it cannot; None when nothing of the kind follows."""
    result, weight = conv.outputs[0], conv.inputs[1]
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    # The weight says the axes and channels: sizes of the result may be known only at run time.
    kernel = dims(weight)
    if kernel is None or not isinstance(kernel[0], int):
        return None
    for reader in result.consumers():
        found = _affine(reader, result, len(kernel), kernel[0])
        if found is None:
            continue
        if only_reader(result) is not reader:
            return f"something else than the {reader.op_type} reads {result.name}"
        if not is_weight(weight) or (bias is not None and not is_weight(bias)):
            return "the convolution's weight is computed in the graph"
        if weight is not None and len(weight.uses()) > 1:
            return f"something else reads the weight {weight.name}"
        return found
    return None


def _affine(node: ir.Node, x: ir.Value, axes: int, channels: int) -> _Affine | None:
    """`node` as factors and summands of the channels of `x` [batch, channels, ...]; None when it is not that."""
    if node.domain != "":
        return None
    if node.op_type == "BatchNormalization":
        weights = tuple(value for value in node.inputs[1:5] if value is not None)
        trained = integer_attribute(node, "training_mode", 0)
        if trained or len(weights) < 4 or not all(is_weight(value) for value in weights):
            return None
        epsilon = float_attribute(node, "epsilon", 1e-5)

        def factor() -> Array:
            scale, _, _, variance = (_array(value) for value in weights)
            return scale / np.sqrt(variance + epsilon)

        def summand() -> Array:
            _, shift, mean, _ = (_array(value) for value in weights)
            return shift - mean * factor()

        return _Affine(node, weights, factor, summand)
    if node.op_type not in ("Mul", "Add"):
        return None
    given = other_input(node, x)
    if given is None or not is_weight(given) or not _one_a_channel(dims(given), axes, channels):
        return None

    def row() -> Array:
        return np.broadcast_to(_array(given).reshape(-1), (channels,))

    multiplies = node.op_type == "Mul"
    return _Affine(node, (given,), row if multiplies else None, None if multiplies else row)


def _one_a_channel(shape: Sequence[int | str] | None, axes: int, channels: int) -> bool:
    """Whether a constant broadcast against [batch, channels, ...] has one number a channel, or one in all."""
    if shape is None or len(shape) > axes:
        return False
    full = (1,) * (axes - len(shape)) + tuple(shape)
    return full[1] in (1, channels) and all(size == 1 for axis, size in enumerate(full) if axis != 1)


def _taken_in(graph: ir.Graph, conv: ir.Node, affine: _Affine) -> ir.Node:
    """A Conv that computes what `conv` and `affine.last` do, in the latter's place."""
    weight = conv.inputs[1]
    bias = conv.inputs[2] if len(conv.inputs) > 2 else None
    shape = dims(weight)
    assert weight is not None
    assert weight.dtype is not None
    assert shape is not None
    sizes = [int(size) for size in shape]
    old = affine.last.outputs[0]
    name = f"{node_name(conv)}.with_{node_name(affine.last)}"
    new_weight, new_bias = weight, bias
    if affine.factor is not None:
        factor = affine.factor

        def scaled() -> npt.NDArray[Any]:
            return _array(weight) * factor().reshape(-1, *[1] * (len(sizes) - 1))

        new_weight = add_weight(
            graph, computed(sizes, weight.dtype, scaled, f"{name}.weight"), f"{name}.weight"
        )
        _note(new_weight, weight, affine.weights)
    if bias is not None or affine.summand is not None:

        def shifted() -> npt.NDArray[Any]:
            row = np.zeros(sizes[0]) if bias is None else _array(bias)
            row = row if affine.factor is None else row * affine.factor()
            return row if affine.summand is None else row + affine.summand()

        new_bias = add_weight(
            graph, computed(sizes[:1], weight.dtype, shifted, f"{name}.bias"), f"{name}.bias"
        )
        source = bias if bias is not None else affine.weights[min(1, len(affine.weights) - 1)]
        _note(new_bias, source, [value for value in affine.weights if value is not source])
    fused = ir.node(
        "Conv",
        [conv.inputs[0], new_weight, *([] if new_bias is None else [new_bias])],
        dict(conv.attributes),
        outputs=[output(f"{old.name}_conv", old.dtype, dims(old))],
        name=node_name(conv),
        metadata_props=dict(conv.metadata_props),
    )
    replace(old, insert_before(affine.last, fused))
    return fused


def _note(value: ir.Value, source: ir.Value, others: Sequence[ir.Value]) -> None:
    origins = folded_origin(source, others)
    if origins:
        write_origin(value, origins)


def _array(value: ir.Value) -> Array:
    """A weight in float64, so that what is computed from it is rounded once."""
    tensor = value.const_value
    assert tensor is not None, f"{value.name} is no weight"
    return tensor.numpy().astype(np.float64)
