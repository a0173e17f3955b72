"""Heads of attention as they lie in rows [batch, length, heads * size], and moved apart from them."""

from __future__ import annotations

import math

import onnx_ir as ir

from .matching import dims, insert_before, integer_weight, made_by, only_reader, output

HEADS_FIRST = (0, 2, 1, 3)
"""From [batch, length, heads, size] to [batch, heads, length, size], and back."""


def own_heads(value: ir.Value) -> ir.Value:
    """x [batch, heads, length, size], where `value` repeats each of its heads for several heads of queries."""
    reshape = made_by(value, "Reshape")
    expand = None if reshape is None else made_by(reshape.inputs[0], "Expand")
    apart = None if expand is None else made_by(expand.inputs[0], "Unsqueeze")
    if expand is None or apart is None or apart.inputs[0] is None:
        return value
    source = apart.inputs[0]
    before, repeated, after = dims(source), dims(expand.outputs[0]), dims(value)
    if before is None or repeated is None or after is None or len(before) != 4 or len(repeated) != 5:
        return value
    same = (before[0], before[1], *before[2:]) == (repeated[0], repeated[1], *repeated[3:])
    grouped = all(isinstance(size, int) for size in repeated[1:3]) and after == (
        before[0],
        math.prod(size for size in repeated[1:3] if isinstance(size, int)),
        *before[2:],
    )
    return source if same and grouped and dims(apart.outputs[0]) == (*before[:2], 1, *before[2:]) else value


def rows_of(value: ir.Value) -> ir.Value | None:
    """Rows [batch, length, heads * size], where `value` is these rows with their heads moved apart.

    Heads that are normalized before they are moved become rows again, by a new node.
    """
    transpose = made_by(value, "Transpose")
    if transpose is None or "perm" not in transpose.attributes:
        return None
    if tuple(transpose.attributes["perm"].as_ints()) != HEADS_FIRST:
        return None
    norm = made_by(transpose.inputs[0], "RMSNormalization") or made_by(
        transpose.inputs[0], "LayerNormalization"
    )
    if norm is not None:
        return _joined_heads(norm.outputs[0], transpose)
    reshape = made_by(transpose.inputs[0], "Reshape")
    if reshape is None:
        return None
    apart, rows = dims(transpose.inputs[0]), dims(reshape.inputs[0])
    if apart is None or rows is None or len(rows) != 3 or rows[:2] != apart[:2]:
        return None
    heads, size, width = apart[2], apart[3], rows[2]
    if not isinstance(heads, int) or not isinstance(size, int) or width != heads * size:
        return None
    return reshape.inputs[0]


def _joined_heads(apart: ir.Value, place: ir.Node) -> ir.Value | None:
    """Rows [batch, length, heads * size] of `apart` [batch, length, heads, size]."""
    shape, graph = dims(apart), place.graph
    if shape is None or len(shape) != 4 or not isinstance(shape[2], int) or not isinstance(shape[3], int):
        return None
    assert isinstance(graph, ir.Graph)
    width = shape[2] * shape[3]
    reshape = ir.node(
        "Reshape",
        [apart, integer_weight(graph, [0, 0, width], "shape")],
        outputs=[output(f"{apart.name}_together", apart.dtype, (*shape[:2], width))],
        name=f"{apart.name}_together",
    )
    return insert_before(place, reshape)


def rows_from(value: ir.Value) -> ir.Node | None:
    """The Reshape that gives rows [batch, length, heads * size] of `value` [batch, heads, length, size]."""
    transpose = only_reader(value, "Transpose")
    if transpose is None or "perm" not in transpose.attributes:
        return None
    reshape = only_reader(transpose.outputs[0], "Reshape")
    if tuple(transpose.attributes["perm"].as_ints()) != HEADS_FIRST or reshape is None:
        return None
    apart, rows = dims(value), dims(reshape.outputs[0])
    if apart is None or rows is None or len(rows) != 3 or rows[:2] != (apart[0], apart[2]):
        return None
    heads, size = apart[1], apart[3]
    return reshape if isinstance(heads, int) and isinstance(size, int) and rows[2] == heads * size else None
