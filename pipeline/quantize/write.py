"""Writes quantization into a graph: codes behind DequantizeLinear, and rounding of what is multiplied with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from calibration.linear_layers import LinearLayer, is_weight, linear_layers
from calibration.schemes import Quantized, Scheme, quantize
from model_repo.runtime.errors import BadInput
from plugins.schemas import DOMAIN

from .convolutions import convolutions, write_convolutions
from .experts import experts_of, write_experts
from .nodes import ActivationScale, dequantized, rounded
from .policy import Policy
from .precisions import LayerSchemes
from .tables import free_tables

Rounder = Callable[[str, npt.NDArray[np.float32], Scheme], Quantized]
"""A weight's name, its numbers [out, in] and the scheme to what is stored of it."""
_QUANTIZED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "QLinearMatMul",
    "QLinearConv",
    "ConvInteger",
)


class Written(NamedTuple):
    """What was quantized: the node name of a product or convolution, or a weight's name, with its schemes in words."""

    products: dict[str, LayerSchemes]
    tables: dict[str, Scheme]
    kept: tuple[str, ...]  # weights of products and convolutions that stay in floating point


def nearest(name: str, weight: npt.NDArray[np.float32], scheme: Scheme) -> Quantized:
    """Rounding to nearest, with scales from the weight's own range."""
    return quantize(weight, scheme)


def layers_of(model: ir.Model, policy: Policy) -> list[LinearLayer]:
    """Layers whose weights the policy quantizes, one for each weight. Raises BadInput for a graph that is quantized."""
    for node in model.graph.all_nodes():
        if node.op_type in _QUANTIZED or (node.domain == DOMAIN and "Quantize" in node.op_type):
            raise BadInput(
                f"the graph is quantized already: {node.op_type} (node {node.name!r}); give a model in floating point"
            )
    return [layer for layer in linear_layers(model) if _pays(layer.weight, policy)]


def write(
    model: ir.Model,
    policy: Policy,
    schemes: Mapping[str, LayerSchemes],
    rounder: Rounder = nearest,
    scale_of: ActivationScale | None = None,
) -> Written:
    """Quantizes the products, experts and convolutions that `schemes` names by their weights, and the products' tables.

    Raises BadInput: the target cannot run a scheme, a scale that is needed is missing, weights that are not finite.
    """
    first = {layer.weight: layer for layer in layers_of(model, policy)}
    products: dict[str, LayerSchemes] = {}
    weights: dict[ir.Value, ir.Value] = {}
    stored: dict[ir.Value, Scheme] = {}
    tables: dict[str, Scheme] = {}
    read: dict[tuple[ir.Value, Scheme], ir.Value] = {}
    for layer in [_layer_of(node, first) for node in list(model.graph)]:
        wanted = None if layer is None else schemes.get(layer.name)
        if layer is None or wanted is None or wanted.weight is None:
            continue
        wanted = policy.adapted(wanted)
        assert wanted.weight is not None
        if layer.weight not in weights:
            made = policy.stored(
                rounder(layer.name, np.ascontiguousarray(first[layer.weight].read()), wanted.weight)
            )
            stored[layer.weight] = made.scheme
            weights[layer.weight] = dequantized(
                model.graph, layer.weight, made, first[layer.weight].transposed
            )
        layer.node.replace_input_with(1, weights[layer.weight])
        if wanted.activation is not None:
            key = (layer.inputs, wanted.activation)
            if key not in read:
                read[key] = rounded(model.graph, layer.inputs, wanted.activation, scale_of, layer.node)
            layer.node.replace_input_with(0, read[key])
        products[layer.node.name or layer.name] = wanted
    if products and policy.tables:
        free_tables(model)
    common = next((item.weight for item in products.values() if item.weight is not None), None)
    for node in list(model.graph):
        table = node.inputs[0] if node.op_type == "Gather" and node.domain == "" else None
        if table is None or not is_weight(table) or not _is_table(node, table):
            continue
        alone = table not in first  # else a product reads it, in floating point: one copy serves both
        if table not in weights and alone and policy.tables and common is not None and _pays(table, policy):
            assert table.const_value is not None
            made = policy.stored(
                rounder(table.name or "", table.const_value.numpy().astype(np.float32), common)
            )
            stored[table] = made.scheme
            weights[table] = dequantized(model.graph, table, made, transposed=False)
        if table in weights:
            node.replace_input_with(0, weights[table])
            tables[table.name or ""] = stored[table]
    routed = write_experts(model, policy, schemes)
    convolved = write_convolutions(model, schemes, scale_of)
    kept = tuple(value.name or "" for value in first if value not in weights)
    kept += tuple(layer.name for layer in experts_of(model, policy))
    kept += tuple(layer.name for layer in convolutions(model))
    passes.RemoveUnusedNodesPass()(model)
    model.graph.sort()
    if any(node.domain == DOMAIN for node in model.graph):
        model.opset_imports[DOMAIN] = 1
    return Written({**products, **routed, **convolved}, tables, kept)


def _pays(weight: ir.Value, policy: Policy) -> bool:
    assert weight.const_value is not None
    return int(np.prod(weight.const_value.shape.numpy())) >= policy.smallest


def _layer_of(node: ir.Node, first: Mapping[ir.Value, LinearLayer]) -> LinearLayer | None:
    """`node` as a layer with one of these weights; they are layers' already, so only its own form is looked at."""
    if node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2 or node.inputs[1] not in first:
        return None
    weight, inputs = node.inputs[1], node.inputs[0]
    assert weight is not None
    assert inputs is not None
    transposed = node.op_type == "MatMul" or not node.attributes.get_int("transB", 0)
    return LinearLayer(node, weight, inputs, transposed) if transposed == first[weight].transposed else None


def _is_table(node: ir.Node, table: ir.Value) -> bool:
    """Whether a Gather takes rows of a matrix."""
    assert table.const_value is not None
    matrix = len(table.const_value.shape) == 2 and table.const_value.dtype == ir.DataType.FLOAT
    return matrix and node.attributes.get_int("axis", 0) == 0
