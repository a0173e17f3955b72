"""Plugins of TensorRT in a graph, run by the CPU's own operator, so that the graph can be compared without a GPU."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from plugins.schemas import DOMAIN, PAGED_ATTENTION, VERSION
from plugins.tensorrt import names

_POOLS = ("key_cache", "value_cache")
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_OWN = ("workers", names.INPUTS, names.PLUGIN_VERSION, names.PLUGIN_NAMESPACE)
"""Attributes of the plugin that the operator has not."""


def operators_for_plugins(model: ir.Model) -> dict[ir.Value, ir.TypeProtocol]:
    """Each PagedAttention plugin becomes `slipway::PagedAttention`, in place; gives the pools and their types.

    The operator computes in float32, so casts stand around it; it takes pools as they are, int8 or of 16 bits. Inputs
    go to their places by the plugin's own `input_names`, as they will on a GPU.
    """
    pools: dict[ir.Value, ir.TypeProtocol] = {}
    for node in list(model.graph):
        if node.domain == names.DOMAIN and node.op_type == names.PAGED_ATTENTION:
            pools |= _replace(model.graph, node)
    if pools:
        model.opset_imports.pop(names.DOMAIN, None)
        model.opset_imports[DOMAIN] = VERSION
    return pools


def _replace(graph: ir.Graph, node: ir.Node) -> dict[ir.Value, ir.TypeProtocol]:
    """One node; gives its pools."""
    given = dict(zip(node.attributes[names.INPUTS].as_string().split(","), node.inputs, strict=True))
    inputs: list[ir.Value | None] = [None] * len(PAGED_ATTENTION.inputs)
    for name, value in given.items():
        assert value is not None
        narrow = value.dtype in _HALVES and name not in _POOLS
        wide = _cast(graph, value, ir.DataType.FLOAT, node) if narrow else value
        inputs[PAGED_ATTENTION.input_index(name)] = wide
    attributes: dict[str, Any] = {
        name: attribute.value for name, attribute in node.attributes.items() if name not in _OWN
    }
    old = node.outputs[0]
    assert old.dtype is not None
    made = ir.node(
        PAGED_ATTENTION.name,
        inputs,
        attributes,
        domain=DOMAIN,
        outputs=[
            ir.Value(name=f"{old.name}.wide", type=ir.TensorType(ir.DataType.FLOAT), shape=old.shape),
            *(ir.Value(name=value.name, type=value.type, shape=value.shape) for value in node.outputs[1:]),
        ],
        name=node.name,
    )
    graph.insert_before(node, made)
    results = [_cast(graph, made.outputs[0], old.dtype, node), *made.outputs[1:]]
    results[0].name = old.name
    for before, after in zip(node.outputs, results, strict=True):
        before.replace_all_uses_with(after, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return {pool: pool.type for name in _POOLS if (pool := given[name]) is not None and pool.type is not None}


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
    """`value` as `dtype`, through a node in front of `before`."""
    made = ir.Value(name=f"{before.name}.{value.name}.cast", type=ir.TensorType(dtype), shape=value.shape)
    cast = ir.node("Cast", [value], {"to": int(dtype)}, outputs=[made], name=made.name)
    graph.insert_before(before, cast)
    return made
