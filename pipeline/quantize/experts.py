"""Mixtures of experts: codes of their matrices behind DequantizeLinear, and rows rounded as those of other products.

Each expert's matrix is rounded to nearest by itself, whatever the algorithm: a row of calibration data reaches few of
them. int8 has a scale an output, which DequantizeLinear writes as one block of all inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calibration.algorithms.rtn import round_to_nearest
from calibration.linear_layers import is_weight
from calibration.schemes import Scheme
from plugins.schemas import DOMAIN, EXPERT_LINEAR

from .nodes import constant, rounded
from .policy import Policy
from .precisions import LayerSchemes


class Experts(NamedTuple):
    """An ExpertLinear node with a weight of its own, [experts, out, in], or [experts, in, out] when transposed."""

    node: ir.Node
    weight: ir.Value
    inputs: ir.Value  # [rows, in]
    transposed: bool

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.weight.name or ""

    @property
    def in_axis(self) -> int:
        """The weight's axis of inputs."""
        return 1 if self.transposed else 2


def experts_of(model: ir.Model, policy: Policy) -> list[Experts]:
    """Those whose weights the policy quantizes, in the order of the graph."""
    found = []
    for node in model.graph:
        if node.domain != DOMAIN or node.op_type != EXPERT_LINEAR.name or not policy.experts:
            continue
        inputs, weight = node.inputs[0], node.inputs[1]
        if inputs is None or weight is None or not is_weight(weight) or len(list(weight.uses())) != 1:
            continue
        assert weight.const_value is not None
        matrix = int(np.prod(weight.const_value.shape.numpy()[1:]))
        if weight.const_value.dtype == ir.DataType.FLOAT and matrix >= policy.smallest:
            found.append(Experts(node, weight, inputs, bool(node.attributes.get_int("transposed", 0))))
    return found


def expert_schemes(schemes: Mapping[str, LayerSchemes]) -> dict[str, LayerSchemes]:
    """Those of `schemes` that experts have products for: int8 and symmetric int4. fp8 leaves them in floating point."""
    found = {}
    for name, layer in schemes.items():
        weight = layer.weight
        if weight is not None and weight.format in ("int8", "int4"):
            found[name] = replace(layer, weight=replace(weight, symmetric=True))
    return found


def write_experts(
    model: ir.Model, policy: Policy, schemes: Mapping[str, LayerSchemes]
) -> dict[str, LayerSchemes]:
    """Quantizes the experts whose weights `schemes` names, in place; gives their schemes by node name.

    What several of them read is rounded once. Raises BadInput: weights that are not finite.
    """
    written: dict[str, LayerSchemes] = {}
    read: dict[ir.Value, ir.Value] = {}
    for layer in experts_of(model, policy):
        wanted = schemes.get(layer.name)
        if wanted is None or wanted.weight is None:
            continue
        wanted = policy.adapted(wanted)
        assert wanted.weight is not None
        layer.node.replace_input_with(1, _dequantized(model.graph, layer, policy, wanted.weight))
        if wanted.activation is not None:
            if layer.inputs not in read:
                read[layer.inputs] = rounded(model.graph, layer.inputs, wanted.activation, None, layer.node)
            layer.node.replace_input_with(0, read[layer.inputs])
        written[layer.node.name or layer.name] = wanted
    return written


def _dequantized(graph: ir.Graph, layer: Experts, policy: Policy, scheme: Scheme) -> ir.Value:
    """The matrices as their codes mean them, expert by expert."""
    assert layer.weight.const_value is not None
    weights = layer.weight.const_value.numpy()
    codes: list[npt.NDArray[np.int8]] = []
    scales: list[npt.NDArray[np.float32]] = []
    for matrix in weights:
        made = policy.stored(round_to_nearest(matrix.T if layer.transposed else matrix, scheme))
        steps = made.scales.reshape(len(made.codes), -1)
        codes.append(made.codes.T if layer.transposed else made.codes)
        scales.append(steps.T if layer.transposed else steps)
    four = scheme.format == "int4"
    kind, stored = (ir.DataType.INT4, ml_dtypes.int4) if four else (ir.DataType.INT8, np.int8)
    inputs = [
        constant(graph, f"{layer.name}.codes", np.stack(codes).astype(stored), kind, layer.weight),
        constant(graph, f"{layer.name}.scale", np.stack(scales), ir.DataType.FLOAT, None),
    ]
    attributes = {"axis": layer.in_axis, "block_size": scheme.block or weights.shape[layer.in_axis]}
    out = ir.Value(name=f"{layer.name}.dequantized", type=layer.weight.type, shape=layer.weight.shape)
    node = ir.node("DequantizeLinear", inputs, attributes, outputs=[out], name=f"{layer.name}.dequantize")
    graph.insert_before(graph[0], node)
    return out
