"""An encoder's packed texts with Slipway's plugin FlashAttention: the operators of packing in standard ones.

How many tokens there are is known only on the device, and an engine's memory is planned beforehand. So all places of
the padded batch stay rows, those of tokens first, text after text, and padding behind them: FlashAttention reads the
texts alone, by `cu_seqlens`, and what is computed of padding is dropped at the end. Products take as long as padded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from pipeline.fuse.matching import dims, integer_attribute, replace
from pipeline.targets.native.nodes import Nodes
from plugins.schemas import DOMAIN, PACKED_ATTENTION, PACKED_LAYOUT, PACKED_POOL, UNPACKED_ROWS

from .flash_node import Rows, flash_attention

_SUM, _MAXIMUM, _FIRST, _LAST = range(4)
"""Kinds of PackedPool."""


class _Layout(NamedTuple):
    """Where tokens lie: `mask` int64 [batch, length]; `flat` int64 [places]; `place` int64 [places], the row of each
    place of the padded batch; `starts` int32 [batch + 1]."""

    mask: ir.Value
    flat: ir.Value
    place: ir.Value
    starts: ir.Value


def texts_to_plugins(model: ir.Model) -> list[ir.Node]:
    """Rewrites a fused encoder graph in place; gives the plugins' nodes, none for a graph that is not packed.

    Raises BadInput for heads that the kernel does not take.
    """
    plugins: list[ir.Node] = []
    layouts: dict[ir.Value, _Layout] = {}
    for node in list(model.graph):
        if node.domain != DOMAIN:
            continue
        if node.op_type == PACKED_LAYOUT.name:
            layout = _layout(node)
            layouts[layout.starts] = layout
        elif node.op_type == PACKED_ATTENTION.name:
            plugins.append(_attention(node))
        elif node.op_type == UNPACKED_ROWS.name:
            _replace(node, _padded(Nodes(node), node.inputs[0], layouts[_given(node, 1)]))
        elif node.op_type == PACKED_POOL.name:
            _replace(node, _pooled(node, layouts[_given(node, 1)]))
    return plugins


def _layout(node: ir.Node) -> _Layout:
    nodes, mask = Nodes(node), _given(node, 0)
    one, zero = nodes.integers(1), nodes.integers(0)
    flat = nodes.add("Reshape", mask, nodes.integers(-1), shape=("places",))
    axis = nodes.constant(np.array(0, np.int64), "native_axis_0")
    tokens = nodes.add("CumSum", flat, axis)
    padding = nodes.add("CumSum", nodes.add("Sub", one, flat), axis)
    total = nodes.add("ReduceSum", flat, zero, keepdims=1)
    behind = nodes.add("Add", total, padding)
    is_token = nodes.add("Equal", flat, one, dtype=ir.DataType.BOOL)
    place = nodes.add("Sub", nodes.add("Where", is_token, tokens, behind, dtype=ir.DataType.INT64), one)
    index = nodes.add("Sub", nodes.add("Add", tokens, padding), one)
    nothing = nodes.add("Sub", flat, flat)
    order = nodes.add("ScatterElements", nothing, place, index, axis=0)
    lengths = nodes.add("ReduceSum", mask, one, keepdims=0)
    ends = nodes.add("CumSum", lengths, axis)
    starts = nodes.add("Cast", nodes.add("Concat", zero, ends, axis=0), dtype=ir.DataType.INT32, to=6)
    length = nodes.add("Shape", mask, dtype=ir.DataType.INT64, start=1, end=2)
    made = (
        nodes.add("Cast", order, dtype=ir.DataType.INT32, to=6),
        nodes.add("Cast", nodes.add("Mod", order, length), dtype=ir.DataType.INT32, to=6),
        starts,
    )
    for old, new in zip(node.outputs, made, strict=False):
        if old.name:
            new.shape = new.shape or old.shape
            replace(old, new)
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    graph.remove(node, safe=True)
    return _Layout(mask, flat, place, starts)


def _padded(nodes: Nodes, rows: ir.Value | None, layout: _Layout, fill: float = 0.0) -> ir.Value:
    """[batch, length, ...] with `fill` for padding."""
    assert rows is not None
    shape = dims(rows) or ()
    places = nodes.add("Gather", rows, layout.place, axis=0)
    size = nodes.add("Shape", layout.mask, dtype=ir.DataType.INT64)
    for width in shape[1:]:
        assert isinstance(width, int)
        size = nodes.add("Concat", size, nodes.integers(width), axis=0)
    texts = nodes.add("Reshape", places, size)
    is_token = nodes.add("Equal", layout.mask, nodes.integers(1), dtype=ir.DataType.BOOL)
    for axis in range(2, 1 + len(shape)):
        is_token = nodes.add("Unsqueeze", is_token, nodes.integers(axis))
    other = nodes.constant(np.array(fill, np.float32), f"native_fill_{fill:g}")
    return nodes.add("Where", is_token, texts, other, dtype=rows.dtype)


def _pooled(node: ir.Node, layout: _Layout) -> ir.Value:
    """[batch, width]; zeros for an empty text."""
    nodes, rows = Nodes(node), _given(node, 0)
    kind, one = integer_attribute(node, "kind", _SUM), nodes.integers(1)
    if kind == _SUM:
        return nodes.add("ReduceSum", _padded(nodes, rows, layout), one, keepdims=0)
    if kind == _MAXIMUM:
        lowest = float(np.finfo(np.float32).min)
        found = nodes.add("ReduceMax", _padded(nodes, rows, layout, lowest), one, keepdims=0)
    else:
        ends, least = nodes.integers(np.iinfo(np.int64).max), nodes.integers(0)
        first, last = (least, nodes.integers(-1)) if kind == _FIRST else (one, ends)
        place = nodes.add("Slice", layout.starts, first, last, nodes.integers(0))
        if kind == _LAST:
            place = nodes.add("Sub", place, nodes.constant(np.array([1], np.int32), "native_int32_1"))
        found = nodes.add("Gather", rows, place, axis=0)
    length = nodes.add("ReduceSum", layout.mask, one, keepdims=1)
    is_text = nodes.add("Greater", length, nodes.integers(0), dtype=ir.DataType.BOOL)
    nothing = nodes.constant(np.array(0, np.float32), "native_fill_0")
    return nodes.add("Where", is_text, found, nothing, dtype=rows.dtype)


def _attention(node: ir.Node) -> ir.Node:
    """FlashAttention in the place of a PackedAttention."""
    given = {p.name: v for p, v in zip(PACKED_ATTENTION.inputs, node.inputs, strict=False) if v is not None}
    nodes = Nodes(node)
    heads, kv_heads = (integer_attribute(node, name, 0) for name in ("num_heads", "kv_num_heads"))
    rows = Rows(given["query"], given.get("key"), given.get("value"), heads, kv_heads)
    if "cos_cache" in given:
        rows = _turned(nodes, rows, given, integer_attribute(node, "rotary_interleaved", 0))
    bias = given.get("bias")
    if bias is not None:
        bias = nodes.add("Unsqueeze", bias, nodes.integers(0), shape=(1, *(dims(bias) or ())))
    left, right = (integer_attribute(node, name, -1) for name in ("left_window", "right_window"))
    windows = {"window_left": left + 1 if left >= 0 else -1, "causal": int(right == 0)}
    if right > 0:
        windows["window_right"] = right
    scale = node.attributes.get_float("scale", 0.0) or 0.0
    made = flash_attention(node, rows, given["cu_seqlens"], bias, {"scale": scale, **windows})
    _replace(node, made.outputs[0])
    return made


def _turned(nodes: Nodes, rows: Rows, given: Mapping[str, ir.Value], interleaved: int) -> Rows:
    """With rotary embedding, which the plugin leaves to the builder."""
    query, key, value = rows.query, rows.key, rows.value
    if key is None:
        width = (dims(query) or ())[-1]
        assert isinstance(width, int)
        size = width // (rows.heads + 2 * rows.kv_heads)
        sizes = nodes.integers(rows.heads * size, rows.kv_heads * size, rows.kv_heads * size)
        query, key, value = nodes.several("Split", 3, query, sizes, axis=-1)
        for part, heads in ((query, rows.heads), (key, rows.kv_heads), (value, rows.kv_heads)):
            part.shape = ir.Shape((*(dims(rows.query) or ())[:-1], heads * size))
    front = nodes.integers(0)
    angles = [_of_rows(nodes, given[name], given["position_ids"]) for name in ("cos_cache", "sin_cache")]

    def turned(part: ir.Value, heads: int) -> ir.Value:
        batch = nodes.add("Unsqueeze", part, front)
        made = nodes.add("RotaryEmbedding", batch, *angles, num_heads=heads, interleaved=interleaved)
        return nodes.add("Squeeze", made, front, shape=part.shape)

    return Rows(turned(query, rows.heads), turned(key, rows.kv_heads), value, rows.heads, rows.kv_heads)


def _of_rows(nodes: Nodes, table: ir.Value, positions: ir.Value) -> ir.Value:
    """[1, rows, size] of a table [positions, size], which may have an axis of one before these."""
    shape = dims(table) or ()
    size = shape[-1]
    assert isinstance(size, int)
    if len(shape) > 2:
        table = nodes.add("Reshape", table, nodes.integers(-1, size), shape=("positions", size))
    rows = nodes.add("Gather", table, positions, axis=0)
    return nodes.add("Unsqueeze", rows, nodes.integers(0), shape=(1, "rows", size))


def _given(node: ir.Node, place: int) -> ir.Value:
    value = node.inputs[place]
    assert value is not None
    return value


def _replace(node: ir.Node, new: ir.Value) -> None:
    """`new` for the node's one output."""
    old, graph = node.outputs[0], node.graph
    assert isinstance(graph, ir.Graph)
    new.type, new.shape = old.type, old.shape
    replace(old, new)
    graph.remove(node, safe=True)
