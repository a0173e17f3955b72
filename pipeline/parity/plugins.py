"""Attention that only GPUs have, run by the CPU's own operator, so that a lowered graph can be compared without one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from model_repo.runtime.attention_metadata import ATTENTION_METADATA
from pipeline.targets.contrib_attention import CONTRIB
from plugins.schemas import DOMAIN, PAGED_ATTENTION, VERSION
from plugins.tensorrt import names

_POOLS = ("key_cache", "value_cache")
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def operators_for_plugins(model: ir.Model) -> dict[ir.Value, ir.TypeProtocol]:
    """TensorRT's PagedAttention plugins and com.microsoft.PagedAttention become `slipway::PagedAttention`, in place;
    gives the pools and their types.

    The operator computes in float32, so casts stand around it; it takes pools as they are. A plugin's inputs go to
    their places by its own `input_names`, as they will on a GPU; those of com.microsoft's operator by their order.
    """
    pools: dict[ir.Value, ir.TypeProtocol] = {}
    positions = next((value for value in model.graph.inputs if value.name == "position_ids"), None)
    for node in list(model.graph):
        if node.op_type != names.PAGED_ATTENTION or node.domain not in (names.DOMAIN, CONTRIB):
            continue
        given = _of_plugin(node) if node.domain == names.DOMAIN else _of_contrib(node, positions)
        pools |= _replace(model.graph, node, given)
    if pools:
        model.opset_imports.pop(names.DOMAIN, None)
        model.opset_imports[DOMAIN] = VERSION
        kept = [value for value in model.graph.inputs if value.name != ATTENTION_METADATA]
        model.graph.inputs[:] = kept
    return pools


def _of_plugin(node: ir.Node) -> dict[str, ir.Value]:
    """The inputs that are there, by name."""
    given = node.attributes[names.INPUTS].as_string().split(",")
    return {name: value for name, value in zip(given, node.inputs, strict=True) if value is not None}


def _of_contrib(node: ir.Node, positions: ir.Value | None) -> dict[str, ir.Value]:
    """The inputs that are there, by name: scales once a head instead of once a channel, and the step's positions in
    place of what it is told on the host."""
    given = {p.name: v for p, v in zip(PAGED_ATTENTION.inputs, node.inputs, strict=False) if v is not None}
    given.pop(ATTENTION_METADATA)
    if positions is not None:
        given["position_ids"] = positions
    for name in ("k_scale", "v_scale"):
        if name in given:
            given[name] = _by_head(node, given[name])
    return given


def _by_head(node: ir.Node, scales: ir.Value) -> ir.Value:
    """Scales [kv_heads, 1, head_size], which are the same for all channels of a head, as [kv_heads]."""
    assert scales.const_value is not None
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    array = scales.const_value.numpy()[:, 0, 0]
    made = ir.Value(
        name=f"{scales.name}.by_head",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(array.shape),
        const_value=ir.tensor(np.ascontiguousarray(array), name=f"{scales.name}.by_head"),
    )
    graph.register_initializer(made)
    return made


def _replace(
    graph: ir.Graph, node: ir.Node, given: Mapping[str, ir.Value]
) -> dict[ir.Value, ir.TypeProtocol]:
    """One node; gives its pools."""
    inputs: list[ir.Value | None] = [None] * len(PAGED_ATTENTION.inputs)
    for name, value in given.items():
        narrow = value.dtype in _HALVES and name not in _POOLS
        wide = _cast(graph, value, ir.DataType.FLOAT, node) if narrow else value
        inputs[PAGED_ATTENTION.input_index(name)] = wide
    known = {attribute.name for attribute in PAGED_ATTENTION.attributes}
    attributes: dict[str, Any] = {
        name: attribute.value for name, attribute in node.attributes.items() if name in known
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
    pools = [given[name] for name in _POOLS]
    return {pool: pool.type for pool in pools if pool.type is not None}


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
    """`value` as `dtype`, through a node in front of `before`."""
    made = ir.Value(name=f"{before.name}.{value.name}.cast", type=ir.TensorType(dtype), shape=value.shape)
    cast = ir.node("Cast", [value], {"to": int(dtype)}, outputs=[made], name=made.name)
    graph.insert_before(before, cast)
    return made
