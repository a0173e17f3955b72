"""Convolutions in int8: codes of their weights with a scale an output channel, and of what they read with one scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calibration.linear_layers import is_weight
from calibration.schemes import Scheme, quantize
from model_repo.runtime.errors import BadInput

from .nodes import ActivationScale, dequantized, rounded
from .policy import Policy
from .precisions import LayerSchemes


class Convolution(NamedTuple):
    """A Conv node with a weight of its own, [out, in / groups, ...kernel] in float32."""

    node: ir.Node
    weight: ir.Value
    inputs: ir.Value  # [batch, in, ...]

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.weight.name or ""

    def read(self) -> npt.NDArray[np.float32]:
        """The weight."""
        assert self.weight.const_value is not None
        return self.weight.const_value.numpy().astype(np.float32, copy=False)


def convolutions(model: ir.Model) -> list[Convolution]:
    """Those with constant weights, in the order of the graph."""
    found = []
    for node in model.graph:
        if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
            continue
        inputs, weight = node.inputs[0], node.inputs[1]
        if inputs is None or weight is None or not is_weight(weight) or is_weight(inputs):
            continue
        assert weight.const_value is not None
        if weight.const_value.dtype == ir.DataType.FLOAT:
            found.append(Convolution(node, weight, inputs))
    return found


def convolution_schemes(
    model: ir.Model, policy: Policy, precision: str, chosen: Mapping[str, str] | None = None
) -> dict[str, LayerSchemes]:
    """The schemes of each convolution's weight, by its name; of those that stay in floating point there are none.

    `chosen`: precision by weight name, for precision mixed. Raises BadInput for one that no convolution takes.
    """
    names = [layer.name for layer in convolutions(model)]
    for name in names:
        given = (chosen or {}).get(name, "int8")
        if given not in ("int8", "fp32"):
            raise BadInput(
                f"quantize.layers gives the convolution {name!r} precision {given!r}; known: int8, fp32"
            )
    wanted = [name for name in names if (precision if chosen is None else chosen.get(name, "fp32")) == "int8"]
    return dict.fromkeys(wanted, LayerSchemes(Scheme("int8", "channel"), policy.convolved))


def write_convolutions(
    model: ir.Model, schemes: Mapping[str, LayerSchemes], scale_of: ActivationScale | None
) -> dict[str, LayerSchemes]:
    """Quantizes the convolutions whose weights `schemes` names, in place; gives their schemes by node name.

    What several of them read is rounded once. Raises BadInput: a scale that is needed is missing, weights that are
    not finite.
    """
    written: dict[str, LayerSchemes] = {}
    weights: dict[ir.Value, ir.Value] = {}
    read: dict[ir.Value, ir.Value] = {}
    for layer in convolutions(model):
        wanted = schemes.get(layer.name)
        if wanted is None:
            continue
        assert wanted.weight is not None
        assert wanted.activation is not None
        if layer.weight not in weights:
            made = quantize(layer.read(), wanted.weight)
            weights[layer.weight] = dequantized(model.graph, layer.weight, made, transposed=False)
        if layer.inputs not in read:
            read[layer.inputs] = rounded(model.graph, layer.inputs, wanted.activation, scale_of, layer.node)
        layer.node.replace_input_with(0, read[layer.inputs])
        layer.node.replace_input_with(1, weights[layer.weight])
        written[layer.node.name or layer.name] = wanted
    return written
