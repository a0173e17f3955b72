"""Operators of domain `slipway` written out in standard ones; the target's builder fuses them its own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir

from model_repo.runtime.errors import BadInput
from pipeline.fuse.matching import float_attribute, integer_attribute, replace
from plugins.schemas import (
    BIAS_GELU,
    DOMAIN,
    EMBED_LAYER_NORMALIZATION,
    GEGLU,
    SKIP_LAYER_NORMALIZATION,
    SKIP_RMS_NORMALIZATION,
    SWIGLU,
)

from .nodes import Nodes


def write_out(model: ir.Model, keep: frozenset[str]) -> None:
    """Rewrites the nodes of domain `slipway` in place, but for the operators named in `keep`.

    Raises BadInput for an operator that standard ones do not express well.
    """
    for node in list(model.graph):
        if node.domain != DOMAIN or node.op_type in keep:
            continue
        if node.op_type not in _WRITTEN:
            raise BadInput(
                f"the graph holds slipway::{node.op_type} (node {node.name!r}), which TensorRT and TensorRT-RTX "
                f"have no operator for; written out are {', '.join(_WRITTEN)}. Build for target 'onnxruntime'"
            )
        results = _WRITTEN[node.op_type](node, Nodes(node))
        for old, new in zip(node.outputs, results, strict=False):
            replace(old, new)
        model.graph.remove(node, safe=True)
    if not keep:
        model.opset_imports.pop(DOMAIN, None)


def _skip_rms_normalization(node: ir.Node, nodes: Nodes) -> tuple[ir.Value, ...]:
    value, skip, weight = node.inputs
    total = nodes.add("Add", value, skip)
    epsilon = float_attribute(node, "epsilon", 1e-5)
    return nodes.add("RMSNormalization", total, weight, axis=-1, epsilon=epsilon), total


def _skip_layer_normalization(node: ir.Node, nodes: Nodes) -> tuple[ir.Value, ...]:
    value, skip, weight, bias, input_bias = (*node.inputs, None, None)[:5]
    total = nodes.add("Add", value, skip)
    if input_bias is not None:
        total = nodes.add("Add", total, input_bias)
    epsilon = float_attribute(node, "epsilon", 1e-5)
    given = (total, weight) if bias is None else (total, weight, bias)
    return nodes.add("LayerNormalization", *given, axis=-1, epsilon=epsilon), total


def _embed_layer_normalization(node: ir.Node, nodes: Nodes) -> tuple[ir.Value, ...]:
    ids, table, second_ids, second_table, weight, bias, third_ids, third_table = (
        *node.inputs,
        None,
        None,
        None,
    )[:8]
    total = nodes.add("Gather", table, ids, axis=0)
    for rows, entries in ((second_ids, second_table), (third_ids, third_table)):
        if rows is not None:
            total = nodes.add("Add", total, nodes.add("Gather", entries, rows, axis=0))
    epsilon = float_attribute(node, "epsilon", 1e-5)
    given = (total, weight) if bias is None else (total, weight, bias)
    return nodes.add("LayerNormalization", *given, axis=-1, epsilon=epsilon), total


def _gelu(node: ir.Node) -> dict[str, Any]:
    return {"approximate": "tanh" if integer_attribute(node, "tanh", 0) else "none"}


def _bias_gelu(node: ir.Node, nodes: Nodes) -> tuple[ir.Value, ...]:
    return (nodes.add("Gelu", nodes.add("Add", *node.inputs), **_gelu(node)),)


def _geglu(node: ir.Node, nodes: Nodes) -> tuple[ir.Value, ...]:
    gate, up = nodes.several("Split", 2, node.inputs[0], axis=-1, num_outputs=2)
    return (nodes.add("Mul", nodes.add("Gelu", gate, **_gelu(node)), up),)


def _swiglu(node: ir.Node, nodes: Nodes) -> tuple[ir.Value, ...]:
    gate, up = nodes.several("Split", 2, node.inputs[0], axis=-1, num_outputs=2)
    silu = nodes.add("Mul", gate, nodes.add("Sigmoid", gate))
    return (nodes.add("Mul", silu, up),)


_WRITTEN: Mapping[str, Callable[[ir.Node, Nodes], tuple[ir.Value, ...]]] = {
    SKIP_RMS_NORMALIZATION.name: _skip_rms_normalization,
    SKIP_LAYER_NORMALIZATION.name: _skip_layer_normalization,
    EMBED_LAYER_NORMALIZATION.name: _embed_layer_normalization,
    BIAS_GELU.name: _bias_gelu,
    GEGLU.name: _geglu,
    SWIGLU.name: _swiglu,
}
