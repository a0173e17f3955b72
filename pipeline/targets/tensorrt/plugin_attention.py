"""Attention without a cache as Slipway's plugin FlashAttention: rows of all sequences, one after the other.

What the standard's Attention computes of whole batches without a mask is sequences of one length.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace as changed

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from model_repo.runtime.errors import BadInput
from pipeline.fuse.matching import dims, integer_attribute, replace
from pipeline.precision.convert import convert
from pipeline.precision.plan import Precision
from pipeline.targets.native.nodes import Nodes
from pipeline.targets.native.precision import fitting_plan
from pipeline.targets.native.standard import write_out
from plugins.tensorrt import names

from .flash_node import Rows, flash_attention
from .plugin_texts import texts_to_plugins

_NARROW = frozenset({"query", "key", "value"})
"""Inputs of the plugin that are of the network's 16-bit type."""


def batches_to_plugins(model: ir.Model) -> list[ir.Node]:
    """Rewrites the standard's Attention of [batch, length, heads * size] without mask and cache in place, each text
    to itself, and gives the plugins' nodes. Others stay as they are. Raises BadInput as `flash_attention` does."""
    plugins = []
    for node in list(model.graph):
        if node.domain != "" or node.op_type != "Attention":
            continue
        query, key, value = node.inputs[:3]
        if any(more is not None for more in node.inputs[3:]) or len(node.outputs) > 1:
            continue
        shapes = [dims(given) for given in (query, key, value)]
        if any(shape is None or len(shape) != 3 for shape in shapes) or shapes[0] is None:
            continue
        if len({shape[:2] for shape in shapes if shape is not None}) > 1:
            continue  # queries of one thing, keys of another
        assert query is not None
        plugins.append(_whole_batch(node, query, key, value))
    return plugins


def _whole_batch(node: ir.Node, query: ir.Value, key: ir.Value | None, value: ir.Value | None) -> ir.Node:
    nodes, graph = Nodes(node), node.graph
    assert isinstance(graph, ir.Graph)

    def flat(given: ir.Value | None) -> ir.Value:
        assert given is not None
        width = (dims(given) or ())[-1]
        assert isinstance(width, int)
        return nodes.add("Reshape", given, nodes.integers(-1, width), shape=("rows", width))

    rows = Rows(
        flat(query),
        flat(key),
        flat(value),
        integer_attribute(node, "q_num_heads", 1),
        integer_attribute(node, "kv_num_heads", 1),
    )
    shape = nodes.add("Shape", query, dtype=ir.DataType.INT64)
    batch, length = (
        nodes.add("Gather", shape, nodes.constant(np.array(axis, np.int64), f"native_axis_{axis}"), axis=0)
        for axis in (0, 1)
    )
    end = nodes.add(
        "Add", nodes.add("Mul", batch, length), nodes.constant(np.array(1, np.int64), "native_axis_1")
    )
    start = nodes.constant(np.array(0, np.int64), "native_axis_0")
    starts = nodes.add("Cast", nodes.add("Range", start, end, length), dtype=ir.DataType.INT32, to=6)
    attributes = {
        "scale": node.attributes.get_float("scale", 0.0) or 0.0,
        "softcap": node.attributes.get_float("softcap", 0.0) or 0.0,
        "causal": integer_attribute(node, "is_causal", 0),
    }
    made = flash_attention(node, rows, starts, None, attributes)
    old = node.outputs[0]
    sizes = nodes.add("Slice", shape, nodes.integers(0), nodes.integers(2))
    of_values = (dims(rows.value) or ())[-1]
    assert isinstance(of_values, int)
    width = of_values // rows.kv_heads * rows.heads
    made.outputs[0].shape = ir.Shape(("rows", width))
    again = nodes.add("Reshape", made.outputs[0], nodes.add("Concat", sizes, nodes.integers(width), axis=0))
    again.type, again.shape = old.type, old.shape
    replace(old, again)
    graph.remove(node, safe=True)
    return made


def attention_to_plugins(model: ir.Model, precision: Precision, keep: Collection[str] = ()) -> None:
    """Rewrites a fused encoder's graph, or one of named tensors, in place: attention by plugins, standard operators
    else, in 16 bit; nodes named in `keep` stay in float32.

    Raises BadInput where no attention is one that the plugin computes, and for weights that do not fit the type.
    """
    plugins = [*texts_to_plugins(model), *batches_to_plugins(model)]
    if not plugins:
        raise BadInput(
            "target.attention is 'plugin', and the graph holds no attention that the plugin FlashAttention computes: "
            "packed texts, or batches without a mask. Leave it at 'native'"
        )
    write_out(model, keep=frozenset())
    model.opset_imports[names.DOMAIN] = 1
    passes.ShapeInferencePass()(model)
    narrow_with_plugins(model, plugins, precision, keep)


def narrow_with_plugins(
    model: ir.Model, plugins: Sequence[ir.Node], precision: Precision, keep: Collection[str] = ()
) -> None:
    """Everything in 16 bit that may be, queries, keys, values and results of `plugins` with it; biases stay float32.

    Raises BadInput for weights that do not fit the type.
    """
    planned = fitting_plan(model, precision, keep)
    inputs, values = dict(planned.inputs), set(planned.values)
    for node in plugins:
        given = node.attributes[names.INPUTS].as_string().split(",")
        inputs[node] = frozenset(place for place, name in enumerate(given) if name in _NARROW)
        values.add(node.outputs[0])
    convert(model, changed(planned, inputs=inputs, values=frozenset(values)))
