"""A float32 graph with some of its nodes in 16 bit: as a target runs it, or with the same numbers in float32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from .plan import TYPES, Plan, Precision, rounded


def convert(model: ir.Model, plan: Plan) -> None:
    """Narrows the nodes of `plan` in place. Inputs and outputs of the graph keep their types: casts stand there, and
    around nodes that stay in float32. Constants that only narrow nodes read are stored in 16 bit."""
    narrow = TYPES[plan.precision]
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for made in plan.values:
        if made.is_graph_output():
            _end_in_float32(model.graph, made, narrow)
        made.type = ir.TensorType(narrow)
    for node in list(model.graph):
        wanted = plan.inputs.get(node, frozenset())
        for place, value in enumerate(node.inputs):
            if value is None or value.dtype not in (ir.DataType.FLOAT, narrow):
                continue
            kind = narrow if place in wanted else ir.DataType.FLOAT
            if value.dtype == kind or (node.op_type == "Cast" and node.domain == ""):
                continue
            key = (value, kind)
            if key not in casts:
                casts[key] = _as(model.graph, value, kind, plan, node)
            node.replace_input_with(place, casts[key])
    for node in plan.inputs:
        if node.op_type == "DequantizeLinear":
            node.attributes["output_dtype"] = ir.AttrInt64("output_dtype", int(narrow))
    passes.RemoveUnusedNodesPass()(model)
    model.graph.sort()


def emulate(model: ir.Model, plan: Plan) -> None:
    """Gives `model`, in place, the numbers of `convert` while everything is computed in float32: what is of the 16-bit
    type is rounded to it, as ONNX Runtime does for operators that it has no 16-bit kernel of."""
    narrow = TYPES[plan.precision]
    inner: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        for place in plan.inputs.get(node, ()):
            value = node.inputs[place]
            if value is None or value in plan.values:
                continue
            if value not in inner:
                inner[value] = _rounded_input(model.graph, value, plan, node)
            node.replace_input_with(place, inner[value])
    for made in plan.values:
        _round_output(model.graph, made, narrow)
    passes.RemoveUnusedNodesPass()(model)
    model.graph.sort()


def widen(model: ir.Model, precision: Precision) -> None:
    """A 16-bit graph with the same numbers in float32, in place: what nodes make in the type is rounded to it."""
    narrow, wide = TYPES[precision], ir.TensorType(ir.DataType.FLOAT)
    for value in model.graph.inputs:
        if value.dtype == narrow:
            value.type = wide
    nodes = list(model.graph)
    for value in list(model.graph.initializers.values()):
        if value.dtype == narrow and not value.is_graph_input():
            _read_wide(model.graph, value, wide)
    for node in nodes:
        for made in node.outputs:
            if made.dtype != narrow:
                continue
            made.type = wide
            for name in ("to", "output_dtype"):
                if name in node.attributes:
                    node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
            _round_output(model.graph, made, narrow)


def _read_wide(graph: ir.Graph, value: ir.Value, wide: ir.TypeProtocol) -> None:
    """Everyone who read the constant reads a cast of it: what is stored stays as it is."""
    result = ir.Value(name=f"{value.name}.widened", type=wide, shape=value.shape)
    readers = list(value.uses())
    cast = ir.node(
        "Cast", [value], {"to": int(ir.DataType.FLOAT)}, outputs=[result], name=f"{value.name}.widened.cast"
    )
    graph.insert_before(graph[0], cast)
    for node, place in readers:
        node.replace_input_with(place, result)


def _end_in_float32(graph: ir.Graph, value: ir.Value, narrow: ir.DataType) -> None:
    """The graph's output is a cast of `value`, and keeps its name."""
    name = value.name
    value.name = f"{name}.{narrow.name.lower()}"
    node = value.producer()
    assert node is not None
    end = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=value.shape)
    cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, outputs=[end], name=f"{name}.cast")
    graph.insert_after(node, cast)
    graph.outputs[list(graph.outputs).index(value)] = end


def _as(graph: ir.Graph, value: ir.Value, kind: ir.DataType, plan: Plan, before: ir.Node) -> ir.Value:
    """`value` in another type: constants as new constants, everything else through a cast."""
    name = f"{value.name}.{kind.name.lower()}"
    if value.const_value is not None and not value.is_graph_input():
        array = rounded(value.const_value.numpy(), plan.precision)
        return _constant(graph, value, name, ir.Tensor(array, dtype=kind, name=name))
    result = ir.Value(name=name, type=ir.TensorType(kind), shape=value.shape)
    cast = ir.node("Cast", [value], {"to": int(kind)}, outputs=[result], name=f"{name}.cast")
    producer = value.producer()
    if producer is None:
        graph.insert_before(before, cast)
    else:
        graph.insert_after(producer, cast)
    return result


def _rounded_input(graph: ir.Graph, value: ir.Value, plan: Plan, before: ir.Node) -> ir.Value:
    name = f"{value.name}.rounded"
    if value.const_value is not None and not value.is_graph_input():
        array = rounded(value.const_value.numpy(), plan.precision).astype(np.float32)
        return _constant(graph, value, name, ir.Tensor(array, name=name))
    result = ir.Value(name=name, type=value.type, shape=value.shape)
    _rounding(graph, value, result, TYPES[plan.precision], value.producer() or before)
    return result


def _rounding(
    graph: ir.Graph, source: ir.Value, target: ir.Value, narrow: ir.DataType, place: ir.Node
) -> None:
    """Two casts from `source` to `target`, beside `place`."""
    middle = ir.Value(name=f"{target.name}.narrow", type=ir.TensorType(narrow), shape=source.shape)
    down = ir.node("Cast", [source], {"to": int(narrow)}, outputs=[middle], name=f"{target.name}.down")
    up = ir.node("Cast", [middle], {"to": int(ir.DataType.FLOAT)}, outputs=[target], name=f"{target.name}.up")
    if source.producer() is None:
        graph.insert_before(place, [down, up])
    else:
        graph.insert_after(place, [down, up])


def _round_output(graph: ir.Graph, value: ir.Value, narrow: ir.DataType) -> None:
    """Everyone who read `value` reads it rounded, under its name."""
    target = ir.Value(name=value.name, type=value.type, shape=value.shape)
    value.name = f"{value.name}.unrounded"
    for node, place in list(value.uses()):
        node.replace_input_with(place, target)
    if value.is_graph_output():
        graph.outputs[list(graph.outputs).index(value)] = target
    producer = value.producer()
    assert producer is not None
    _rounding(graph, value, target, narrow, producer)


def _constant(graph: ir.Graph, old: ir.Value, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new constant beside `old`, with its notes."""
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=old.shape,
        const_value=tensor,
        metadata_props=dict(old.metadata_props),
    )
    graph.register_initializer(value)
    return value
