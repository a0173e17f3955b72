"""Rotary embedding of encoders becomes the standard's RotaryEmbedding.

Rotary embedding: Su et al. 2021, https://arxiv.org/abs/2104.09864. Decoders' goes into the paged attention
operator (`rotary`). Here the tables stay what the graph computes, without their second half, which repeats the
first; where heads were moved apart from rows for it, the operator turns the rows.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from .attention_heads import rows_of
from .matching import (
    add_weight,
    dims,
    insert_before,
    integer_attribute,
    integer_weight,
    made_by,
    node_name,
    output,
    replace,
    scalar,
)
from .rule import Matches, NearMiss, Rule
from .turning import rotates_half

FIRST_OPSET = 23
"""The opset that brought RotaryEmbedding."""


class _Table(NamedTuple):
    """Cosines or sines of angles that are repeated along the last axis: `angles` are half of them."""

    kind: str  # Cos or Sin
    angles: ir.Value  # [1, length, size / 2]
    factor: float


class RotaryEmbedding(Rule):
    """x * cos + rotate_half(x) * sin, where x is [batch, heads, length, size]."""

    name: ClassVar[str] = "rotary_embedding"

    def rewrite(self, model: ir.Model) -> Matches:
        """Fuses where cosines and sines are of the same angles, in two equal halves, for all texts alike."""
        graph = model.graph
        made: dict[tuple[object, ...], ir.Value] = {}
        count, missed = 0, []
        for node in list(graph):
            if node.op_type != "Add" or node.domain != "":
                continue
            turned = _turned(node)
            if turned is None:
                continue
            found = _tables(*turned)
            if not isinstance(found, str) and model.opset_imports.get("", 0) < FIRST_OPSET:
                found = f"opset {model.opset_imports.get('', 0)} has no RotaryEmbedding"
            if isinstance(found, str):
                missed.append(NearMiss(node_name(node), found))
                continue
            _fuse(graph, node, turned[0], found, made)
            count += 1
        return Matches(count, tuple(missed))


def _turned(add: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """x, cosines and sines, where the sum is x turned by them."""
    left, right = (made_by(operand, "Mul") for operand in add.inputs)
    if left is None or right is None:
        return None
    for straight, crossed in ((left, right), (right, left)):
        for x, cos in (straight.inputs, tuple(reversed(straight.inputs))):
            for rotated, sin in (crossed.inputs, tuple(reversed(crossed.inputs))):
                if x is not None and cos is not None and sin is not None and rotates_half(rotated, x):
                    return x, cos, sin
    return None


def _tables(x: ir.Value, cos: ir.Value, sin: ir.Value) -> tuple[_Table, _Table] | str:
    """The tables that `x` is turned by, or why the operator cannot turn it."""
    shape = dims(x)
    if shape is None or len(shape) != 4 or not isinstance(shape[3], int) or not isinstance(shape[1], int):
        return f"what is turned has shape {shape}, not [batch, heads, length, size]"
    found = [_table(value, (1, 1, *shape[2:])) for value in (cos, sin)]
    first, second = found
    if first is None or second is None:
        return "cosines and sines are not of angles in two equal halves, [1, length, size] for all texts"
    if (first.kind, second.kind) != ("Cos", "Sin") or first.angles is not second.angles:
        return "cosines and sines are of different angles"
    return first, second


def _table(value: ir.Value, shape: tuple[int | str, ...]) -> _Table | None:
    """`value` [1, 1, length, size] as a table; None when it is something else."""
    if dims(value) != shape:
        return None
    node = made_by(value, "Unsqueeze") or made_by(value, "Reshape")
    inner = None if node is None else node.inputs[0]
    if inner is None or dims(inner) != (1, *shape[2:]):
        return None
    factor = 1.0
    scaled = made_by(inner, "Mul")
    while scaled is not None:
        for part, given in (scaled.inputs, tuple(reversed(scaled.inputs))):
            number = scalar(given)
            if number is not None and part is not None:
                inner, factor = part, factor * number
                break
        else:
            return None
        scaled = made_by(inner, "Mul")
    function = made_by(inner, "Cos") or made_by(inner, "Sin")
    both = None if function is None else made_by(function.inputs[0], "Concat")
    if function is None or both is None or len(both.inputs) != 2 or both.inputs[0] is not both.inputs[1]:
        return None
    angles = both.inputs[0]
    if angles is None or integer_attribute(both, "axis", 0) not in (-1, 2) or len(dims(angles) or ()) != 3:
        return None
    return _Table(function.op_type, angles, factor)


def _fuse(
    graph: ir.Graph,
    node: ir.Node,
    x: ir.Value,
    tables: tuple[_Table, _Table],
    made: dict[tuple[object, ...], ir.Value],
) -> None:
    """Puts a RotaryEmbedding of rows, or of heads apart, where `node` was."""
    shape = dims(x)
    assert shape is not None
    old, rows = node.outputs[0], rows_of(x)
    given = [_spelled_out(graph, node, table, x, made) for table in tables]
    name = f"{node_name(node)}_rotary"
    if rows is None:
        turned = ir.node(
            "RotaryEmbedding",
            [x, *given],
            outputs=[output(f"{old.name}_rotary", old.dtype, shape)],
            name=name,
        )
        replace(old, insert_before(node, turned))
        return
    batch, heads, length, size = shape
    assert isinstance(size, int)
    assert isinstance(heads, int)
    turned = ir.node(
        "RotaryEmbedding",
        [rows, *given],
        {"num_heads": heads},
        outputs=[output(f"{old.name}_rotary", old.dtype, dims(rows))],
        name=name,
        metadata_props=dict(node.metadata_props),
    )
    apart = ir.node(
        "Reshape",
        [insert_before(node, turned), integer_weight(graph, [0, 0, heads, size], "shape")],
        outputs=[output(f"{old.name}_apart", old.dtype, (batch, length, heads, size))],
        name=f"{name}_apart",
    )
    first = ir.node(
        "Transpose",
        [insert_before(node, apart)],
        {"perm": [0, 2, 1, 3]},
        outputs=[output(f"{old.name}_heads", old.dtype, shape)],
        name=f"{name}_heads",
    )
    replace(old, insert_before(node, first))


def _spelled_out(
    graph: ir.Graph, place: ir.Node, table: _Table, x: ir.Value, made: dict[tuple[object, ...], ir.Value]
) -> ir.Value:
    """The table's first half for each text: [batch, length, size / 2], made once for all layers."""
    shape = dims(x)
    assert shape is not None
    key = (table.kind, table.angles, table.factor, shape[0])
    if key in made:
        return made[key]
    half = dims(table.angles) or ()
    name = f"{table.angles.name}_{table.kind.lower()}_{len(made)}"
    value = insert_before(
        place,
        ir.node(table.kind, [table.angles], outputs=[output(name, table.angles.dtype, half)], name=name),
    )
    if table.factor != 1.0:
        number = np.asarray(table.factor, dtype=np.float32)
        factor = add_weight(graph, ir.tensor(number, name=f"{name}_factor"), f"{name}_factor")
        scaled = ir.node(
            "Mul",
            [value, factor],
            outputs=[output(f"{name}_scaled", value.dtype, half)],
            name=f"{name}_scaled",
        )
        value = insert_before(place, scaled)
    if shape[0] != 1:
        target_key = ("shape", shape[0])
        if target_key not in made:
            made[target_key] = _one_for_each_text(graph, place, x, name)
        expanded = ir.node(
            "Expand",
            [value, made[target_key]],
            outputs=[output(f"{name}_texts", value.dtype, (shape[0], *half[1:]))],
            name=f"{name}_texts",
        )
        value = insert_before(place, expanded)
    made[key] = value
    return value


def _one_for_each_text(graph: ir.Graph, place: ir.Node, x: ir.Value, name: str) -> ir.Value:
    """[batch, 1, 1], the shape that repeats a table for each text of `x`.

    The batch is told by an input of the graph where one has it, so that no more nodes than needed read `x`.
    """
    batch = (dims(x) or (None,))[0]
    told = next((item for item in graph.inputs if (dims(item) or (None,))[0] == batch), x)
    size = ir.node(
        "Shape",
        [told],
        {"start": 0, "end": 1},
        outputs=[output(f"{name}_batch", ir.DataType.INT64, (1,))],
        name=f"{name}_batch",
    )
    target = ir.node(
        "Concat",
        [insert_before(place, size), integer_weight(graph, [1, 1], "ones")],
        {"axis": 0},
        outputs=[output(f"{name}_shape", ir.DataType.INT64, (3,))],
        name=f"{name}_shape",
    )
    return insert_before(place, target)
