"""Factors of a layer's input channels, folded into what makes them: the float model stays as it is.

Layers that read x compute W x. They become (W diag(s)) (x / s), and x / s is made by whatever makes x: a normalization
divides its gain (and bias), a gated activation has the rows of its linear half divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from plugins.schemas import DOMAIN

from .linear_layers import LinearLayer, is_weight, linear_layers, replace_weight
from .slices import used

Factors = npt.NDArray[np.float32]

_GAINS = {
    "RMSNormalization": 1,
    "LayerNormalization": 1,
    "SkipRMSNormalization": 2,
    "SkipLayerNormalization": 2,
}
"""Operator -> place of its gain; a bias follows."""
_GATED = ("SwiGLU", "GeGLU")


@dataclass(frozen=True, eq=False)
class Fold:
    """Where the factors of one tensor go. `divided`: (weight, its slice) of which the channels are divided."""

    layers: tuple[LinearLayer, ...]
    divided: tuple[tuple[ir.Value, slice], ...]  # the slice counts along the weight's last axis
    maker: LinearLayer | None  # the layer whose outputs are divided; its weight is then no longer what it was

    def apply(self, factors: Factors) -> list[str]:
        """Multiplies the layers' input channels and divides what makes them; gives the names of changed weights."""
        for value, part in self.divided:
            assert value.const_value is not None
            array = value.const_value.numpy().astype(np.float32)
            array[..., part] /= factors
            replace_weight(value, array)
        if self.maker is not None:
            rows = self.maker.read().copy()
            rows[len(rows) - len(factors) :] /= factors[:, None]
            self.maker.write(rows)
        for layer in self.layers:
            layer.write(layer.read() * factors)
        makers = [self.maker.weight] if self.maker is not None else []
        changed = [*(value for value, _ in self.divided), *makers, *(layer.weight for layer in self.layers)]
        return [value.name or "" for value in changed]


def fold_of(model: ir.Model, layers: Sequence[LinearLayer]) -> Fold | None:
    """Where factors of the tensor that `layers` read can go; None where something else reads it, or cannot take them.

    All of `layers` read one tensor. Weights that other nodes share are no place for factors.
    """
    inputs = layers[0].inputs
    nodes = {layer.node for layer in layers}
    if inputs in model.graph.outputs or any(node not in nodes for node, _ in inputs.uses()):
        return None
    if any(_readers(model, layer.weight) != 1 for layer in layers):
        return None
    producer = inputs.producer()
    if producer is None or inputs is not producer.outputs[0]:
        return None
    if producer.op_type in _GAINS and producer.domain in ("", "ai.onnx", DOMAIN):
        return _into_gain(model, producer, layers)
    if producer.op_type in _GATED and producer.domain == DOMAIN:
        return _into_gated(model, producer, layers)
    return None


def _into_gain(model: ir.Model, norm: ir.Node, layers: Sequence[LinearLayer]) -> Fold | None:
    axis = norm.attributes.get("axis")
    if axis is not None and axis.as_int() != -1:
        return None
    place = _GAINS[norm.op_type]
    values = [value for value in norm.inputs[place : place + 2] if value is not None]
    if not values or not all(is_weight(value) and _readers(model, value) == 1 for value in values):
        return None
    return Fold(tuple(layers), tuple((value, slice(None)) for value in values), None)


def _into_gated(model: ir.Model, gated: ir.Node, layers: Sequence[LinearLayer]) -> Fold | None:
    """The second half of what a gated activation reads is a factor of its output."""
    product = gated.inputs[0]
    maker = None if product is None else product.producer()
    found = next((layer for layer in linear_layers(model) if layer.node is maker), None)
    if product is None or found is None or len(product.uses()) != 1 or _readers(model, found.weight) != 1:
        return None
    divided = []
    bias = found.node.inputs[2] if found.node.op_type == "Gemm" and len(found.node.inputs) > 2 else None
    if bias is not None:
        if not is_weight(bias) or _readers(model, bias) != 1:
            return None
        divided.append((bias, slice(layers[0].read().shape[1], None)))
    return Fold(tuple(layers), tuple(divided), found)


def _readers(model: ir.Model, value: ir.Value) -> int:
    return sum(value in used(node) for node in model.graph)
