"""Writes quantization into a graph: codes behind DequantizeLinear, and rounding of what is multiplied with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from calibration.linear_layers import LinearLayer, is_weight, linear_layers
from calibration.schemes import Quantized, Scheme, quantize
from model_repo.runtime.errors import BadInput
from plugins.schemas import DOMAIN, FAKE_QUANTIZE_TOKENS

from .policy import Policy
from .precisions import LayerSchemes
from .tables import free_tables

Rounder = Callable[[str, npt.NDArray[np.float32], Scheme], Quantized]
"""A weight's name, its numbers [out, in] and the scheme to what is stored of it."""
ActivationScale = Callable[[str, Scheme], float]
"""A tensor's name and scheme to its scale."""

_CODES: Mapping[str, tuple[ir.DataType, Any]] = {
    "int8": (ir.DataType.INT8, np.int8),
    "int4": (ir.DataType.INT4, ml_dtypes.int4),
    "e4m3": (ir.DataType.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
}
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul")


class Written(NamedTuple):
    """What was quantized: a product's node name or a weight's name, with its schemes in words."""

    products: dict[str, LayerSchemes]
    tables: dict[str, Scheme]
    kept: tuple[str, ...]  # weights of products that stay in floating point


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
    """Quantizes the products whose weights `schemes` names, and the tables that go with them, in place.

    Raises BadInput: the target cannot run a scheme, a scale that is needed is missing, weights that are not finite.
    """
    first = {layer.weight: layer for layer in layers_of(model, policy)}
    products: dict[str, LayerSchemes] = {}
    weights: dict[ir.Value, ir.Value] = {}
    stored: dict[ir.Value, Scheme] = {}
    tables: dict[str, Scheme] = {}
    rounded: dict[tuple[ir.Value, Scheme], ir.Value] = {}
    for layer in [_layer_of(node, first) for node in list(model.graph)]:
        wanted = None if layer is None else schemes.get(layer.name)
        if layer is None or wanted is None or wanted.weight is None:
            continue
        wanted = policy.adapted(wanted)
        assert wanted.weight is not None
        if layer.weight not in weights:
            made = rounder(layer.name, np.ascontiguousarray(first[layer.weight].read()), wanted.weight)
            stored[layer.weight] = made.scheme
            weights[layer.weight] = _dequantized(
                model.graph, layer.weight, made, first[layer.weight].transposed
            )
        layer.node.replace_input_with(1, weights[layer.weight])
        if wanted.activation is not None:
            key = (layer.inputs, wanted.activation)
            if key not in rounded:
                rounded[key] = _rounded(model.graph, layer.inputs, wanted.activation, scale_of, layer.node)
            layer.node.replace_input_with(0, rounded[key])
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
            made = rounder(table.name or "", table.const_value.numpy().astype(np.float32), common)
            stored[table] = made.scheme
            weights[table] = _dequantized(model.graph, table, made, transposed=False)
        if table in weights:
            node.replace_input_with(0, weights[table])
            tables[table.name or ""] = stored[table]
    kept = tuple(value.name or "" for value in first if value not in weights)
    passes.RemoveUnusedNodesPass()(model)
    model.graph.sort()
    if any(node.domain == DOMAIN for node in model.graph):
        model.opset_imports[DOMAIN] = 1
    return Written(products, tables, kept)


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


def _dequantized(graph: ir.Graph, weight: ir.Value, made: Quantized, transposed: bool) -> ir.Value:
    """The weight's numbers as its codes give them, laid out as the weight was; notes go to the codes."""
    kind, stored = _CODES[made.scheme.format]
    codes, scales, axis = made.codes, made.scales, made.axis
    if transposed:
        codes, axis = codes.T, None if axis is None else 1 - axis
        scales = scales.T if made.scheme.granularity == "block" else scales
    name = weight.name or "weight"
    inputs = [
        _constant(graph, f"{name}.codes", np.ascontiguousarray(codes).astype(stored), kind, weight),
        _constant(graph, f"{name}.scale", np.ascontiguousarray(scales), ir.DataType.FLOAT, None),
    ]
    if made.zero_points is not None:
        zeros = made.zero_points.T if transposed and made.scheme.granularity == "block" else made.zero_points
        inputs.append(
            _constant(graph, f"{name}.zero", np.ascontiguousarray(zeros).astype(stored), kind, None)
        )
    attributes: dict[str, int] = {} if axis is None else {"axis": axis}
    if made.scheme.block is not None:
        attributes["block_size"] = made.scheme.block
    out = ir.Value(name=f"{name}.dequantized", type=weight.type, shape=weight.shape)
    node = ir.node("DequantizeLinear", inputs, attributes, outputs=[out], name=f"{name}.dequantize")
    graph.insert_before(graph[0], node)
    return out


def _rounded(
    graph: ir.Graph, value: ir.Value, scheme: Scheme, scale_of: ActivationScale | None, before: ir.Node
) -> ir.Value:
    """What a product sees of `value`."""
    out = ir.Value(name=f"{value.name}.quantized", type=value.type, shape=value.shape)
    if scheme.granularity == "token":
        node = ir.node(
            FAKE_QUANTIZE_TOKENS.name, [value], domain=DOMAIN, outputs=[out], name=f"{value.name}.quantize"
        )
        graph.insert_before(before, node)
        return out
    if scale_of is None:
        raise BadInput(f"{scheme} activations need calibrated scales; run `slipway calibrate` first")
    kind, stored = _CODES[scheme.format]
    scale = _constant(
        graph,
        f"{value.name}.scale",
        np.asarray(scale_of(value.name or "", scheme), np.float32),
        ir.DataType.FLOAT,
        None,
    )
    zero = _constant(graph, f"{value.name}.zero", np.zeros((), stored), kind, None)
    codes = ir.Value(name=f"{value.name}.codes", type=ir.TensorType(kind), shape=value.shape)
    down = ir.node("QuantizeLinear", [value, scale, zero], outputs=[codes], name=f"{value.name}.quantize")
    up = ir.node("DequantizeLinear", [codes, scale, zero], outputs=[out], name=f"{value.name}.dequantize")
    graph.insert_before(before, [down, up])
    return out


def _constant(
    graph: ir.Graph, name: str, array: npt.NDArray[Any], kind: ir.DataType, origin: ir.Value | None
) -> ir.Value:
    """A new initializer; with the notes of `origin`, whose numbers it stands for."""
    value = ir.Value(
        name=name,
        type=ir.TensorType(kind),
        shape=ir.Shape(array.shape),
        const_value=ir.Tensor(array, dtype=kind, name=name),
        metadata_props={} if origin is None else dict(origin.metadata_props),
    )
    graph.register_initializer(value)
    return value
