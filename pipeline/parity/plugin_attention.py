"""FlashAttention plugins in a graph, run by the CPU's own operator, so that the graph can be compared without a GPU."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from plugins.schemas import DOMAIN, PACKED_ATTENTION, VERSION
from plugins.tensorrt import names


def operators_for_flash_attention(model: ir.Model) -> None:
    """Each FlashAttention plugin becomes `slipway::PackedAttention`, in place.

    The operator computes in float32, so casts stand around it. Inputs go to their places by the plugin's own
    `input_names`, as they will on a GPU. What Slipway's lowering does not write is not read: softcaps, sinks, keys of
    other sequences than the queries'.
    """
    for node in list(model.graph):
        if node.domain == names.DOMAIN and node.op_type == names.FLASH_ATTENTION:
            _replace(model.graph, node)
            model.opset_imports[DOMAIN] = VERSION


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    given = dict(zip(node.attributes[names.INPUTS].as_string().split(","), node.inputs, strict=True))
    assert given.pop("cu_seqlens_k") is given["cu_seqlens_q"]
    assert not node.attributes.get_float("softcap", 0.0)
    named = {"cu_seqlens" if name == "cu_seqlens_q" else name: value for name, value in given.items()}
    inputs: list[ir.Value | None] = [None] * len(PACKED_ATTENTION.inputs)
    for name, value in named.items():
        assert value is not None
        if value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            value = _cast(graph, value, ir.DataType.FLOAT, node)
        if name == "bias":
            value = _without_batch(graph, value, node)
        inputs[PACKED_ATTENTION.input_index(name)] = value
    left = node.attributes.get_int("window_left", -1)
    attributes: dict[str, Any] = {
        "num_heads": node.attributes.get_int("num_heads", 0),
        "kv_num_heads": node.attributes.get_int("kv_num_heads", 0),
        "scale": float(node.attributes["scale"].value),
        "left_window": left - 1 if left > 0 else -1,
        "right_window": 0
        if node.attributes.get_int("causal", 0)
        else node.attributes.get_int("window_right", -1),
    }
    old = node.outputs[0]
    assert old.dtype is not None
    wide = ir.Value(name=f"{old.name}.wide", type=ir.TensorType(ir.DataType.FLOAT), shape=old.shape)
    made = ir.node(PACKED_ATTENTION.name, inputs, attributes, domain=DOMAIN, outputs=[wide], name=node.name)
    graph.insert_before(node, made)
    result = _cast(graph, wide, old.dtype, node)
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = old.name


def _without_batch(graph: ir.Graph, bias: ir.Value, before: ir.Node) -> ir.Value:
    """[heads, length, length] of [1, heads, length, length]."""
    name = f"{before.name}.no_batch"
    axis = ir.Value(
        name=f"{name}.axis",
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape((1,)),
        const_value=ir.tensor([0], dtype=ir.DataType.INT64, name=f"{name}.axis"),
    )
    graph.register_initializer(axis)
    made = ir.Value(name=name, type=bias.type)
    graph.insert_before(before, ir.node("Squeeze", [bias, axis], outputs=[made], name=name))
    return made


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, before: ir.Node) -> ir.Value:
    made = ir.Value(name=f"{before.name}.{value.name}.cast", type=ir.TensorType(dtype), shape=value.shape)
    graph.insert_before(before, ir.node("Cast", [value], {"to": int(dtype)}, outputs=[made], name=made.name))
    return made
