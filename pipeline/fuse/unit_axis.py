"""Axes of size 1 and arrangements that cancel out.

A packed step has no batch axis, but the traced model works on [1, tokens, hidden]. The Unsqueeze that adds
the axis is moved down past every operator that does not care, until it meets what drops the axis again; a
chain of reshapes and transpositions that leaves every element where it was goes away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from plugins.schemas import DOMAIN, PAGED_ATTENTION, SKIP_RMS_NORMALIZATION, SWIGLU

from .layout import Sizes, climb, follow, moves_only, numbered
from .matching import (
    Dims,
    dims,
    insert_before,
    integer_attribute,
    integer_weight,
    integers,
    is_weight,
    made_by,
    normalizes_last_axis,
    note_same,
    output,
    rank,
    replace,
)
from .rule import Matches, Rule

_UNARY = frozenset(
    ("Abs", "Cast", "Erf", "Exp", "Gelu", "Neg", "Reciprocal", "Relu", "Sigmoid", "Sqrt", "Swish", "Tanh")
)
_BINARY = frozenset(("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"))
_NORMALIZATION = frozenset(("RMSNormalization", "LayerNormalization"))
_LAST_AXIS = frozenset((SKIP_RMS_NORMALIZATION.name, SWIGLU.name))


class UnitAxis(Rule):
    """Runs until nothing moves any more: what one step frees, the next one can use."""

    name: ClassVar[str] = "unit_axis"

    def rewrite(self, model: ir.Model) -> Matches:
        """Counts the nodes that lost their leading axis, and the arrangements that went away."""
        graph = model.graph
        _note_attention_shapes(graph)
        count = 0
        changed = True
        while changed:
            changed = False
            for node in list(graph):
                if node.graph is None or not any(
                    value.uses() or value.is_graph_output() for value in node.outputs
                ):
                    continue
                if _cancel(graph, node) or _sink(graph, node):
                    count += 1
                    changed = True
        return Matches(count)


def _note_attention_shapes(graph: ir.Graph) -> None:
    """The shapes of attention results, which shape inference of standard operators does not know."""
    for node in graph:
        if node.op_type != PAGED_ATTENTION.name or node.domain != DOMAIN or node.outputs[0].shape is not None:
            continue
        query, values = dims(node.inputs[0]), dims(node.inputs[PAGED_ATTENTION.input_index("value_cache")])
        if query is not None and values is not None and isinstance(values[-1], int):
            width = integer_attribute(node, "num_heads", 0) * values[-1]
            node.outputs[0].shape = ir.Shape((query[0], width))


def _cancel(graph: ir.Graph, node: ir.Node) -> bool:
    """Shortens a chain of arrangements that ends in `node` and moves nothing, or only adds a leading axis."""
    if not moves_only(node):
        return False
    result = node.outputs[0]
    source, chain = climb(result)
    if is_weight(source):  # arranged at build time, by other rules
        return False
    shape, sizes = dims(source), Sizes()
    before = numbered(source, sizes)
    after = None if before is None else follow(before, chain, sizes)
    if shape is None or before is None or after is None or not np.array_equal(after.ravel(), before.ravel()):
        return False
    if after.shape == before.shape:
        if result.is_graph_output() and (source.is_graph_output() or source.is_graph_input()):
            return False
        replace(result, source)
        return True
    if after.shape == (1, *before.shape) and len(chain) > 1:
        replace(result, _unsqueezed(graph, node, source, (1, *shape)))
        return True
    return False


def _sink(graph: ir.Graph, node: ir.Node) -> bool:
    """Moves the Unsqueeze of a leading axis from the inputs of `node` to its output."""
    narrow = [_without_axis(value) for value in node.inputs]
    if not any(value is not None for value in narrow) or not all(
        _plain_shape(value) for value in node.outputs
    ):
        return False
    inputs = _sunk_inputs(node, narrow)
    if inputs is None:
        return False
    attributes = dict(node.attributes)
    if node.op_type == "Gather" and narrow[0] is not None:
        axis = integer_attribute(node, "axis", 0)
        attributes["axis"] = ir.AttrInt64("axis", axis - 1 if axis > 0 else axis)
    if node.op_type == "Transpose":
        attributes["perm"] = ir.AttrInt64s(
            "perm", [axis - 1 for axis in node.attributes["perm"].as_ints()[1:]]
        )
    if node.op_type in {*_NORMALIZATION, "Split"}:
        attributes["axis"] = ir.AttrInt64("axis", -1)
    results = [
        output(f"{old.name}_flat", old.dtype, (dims(old) or ())[1:]) if old.name else output("", None, None)
        for old in node.outputs
    ]
    sunk = ir.Node(
        node.domain,
        node.op_type,
        inputs,
        attributes,
        outputs=results,
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    insert_before(node, sunk)
    for old, new in zip(node.outputs, results, strict=True):
        note_same(new, old)
        if old.uses() or old.is_graph_output():
            replace(old, _unsqueezed(graph, node, new, dims(old) or ()))
    return True


def _sunk_inputs(node: ir.Node, narrow: Sequence[ir.Value | None]) -> list[ir.Value | None] | None:
    """The inputs with which `node` computes the same without the leading axis; None when it does not."""
    first = node.inputs[0] if node.inputs else None
    kind = node.op_type
    if node.domain == DOMAIN and kind in _LAST_AXIS:
        activations = 1 if kind == SWIGLU.name else 2
        if any(value is None for value in narrow[:activations]):
            return None
        return [*narrow[:activations], *node.inputs[activations:]]
    if node.domain != "" or first is None:
        return None
    if kind in _BINARY:
        return _broadcast(node, narrow)
    if narrow[0] is None:
        indices = narrow[1] if kind == "Gather" and len(narrow) > 1 else None
        return [first, indices] if indices is not None and integer_attribute(node, "axis", 0) == 0 else None
    rest = list(node.inputs[1:])
    if kind in _UNARY:
        return [narrow[0]]
    if kind == "MatMul":
        return [narrow[0], *rest] if rank(rest[0]) == 2 and (rank(narrow[0]) or 0) >= 2 else None
    if kind in _NORMALIZATION:
        return [narrow[0], *rest] if normalizes_last_axis(node, first) else None
    if kind == "Gather":
        axis = integer_attribute(node, "axis", 0)
        from_end = -axis <= (rank(narrow[0]) or 0) and axis < 0
        return [narrow[0], *rest] if (axis > 0 or from_end) and _rank_kept(node) else None
    if kind == "Split":
        return [narrow[0], *rest] if integer_attribute(node, "axis", 0) in (-1, rank(narrow[0])) else None
    if kind == "Transpose":
        permutation = node.attributes.get("perm")
        return [narrow[0]] if permutation is not None and permutation.as_ints()[0] == 0 else None
    return None


def _broadcast(node: ir.Node, narrow: Sequence[ir.Value | None]) -> list[ir.Value | None] | None:
    """Operands of a broadcasting operator without the leading axis that the widest of them added."""
    widest = max((rank(value) or 0 for value in node.inputs), default=0)
    inputs: list[ir.Value | None] = []
    for value, without in zip(node.inputs, narrow, strict=True):
        size = rank(value)
        if size is None:
            return None
        if size < widest:
            inputs.append(value)
        elif without is None:
            return None
        else:
            inputs.append(without)
    return inputs


def _rank_kept(node: ir.Node) -> bool:
    """Whether a Gather's result has as many axes as its data: the indices are a vector."""
    return rank(node.inputs[1]) == 1


def _without_axis(value: ir.Value | None) -> ir.Value | None:
    """x, where `value` is x with a leading axis of size 1 added, by an Unsqueeze or as a Reshape says it."""
    reshape = made_by(value, "Reshape")
    if reshape is not None and reshape.inputs[0] is not None:
        before, after = dims(reshape.inputs[0]), dims(value)
        return reshape.inputs[0] if before is not None and after == (1, *before) else None
    node = made_by(value, "Unsqueeze")
    if (
        node is None
        or integers(node.inputs[1]) != (0,)
        or node.inputs[0] is None
        or rank(node.inputs[0]) is None
    ):
        return None
    return node.inputs[0]


def _plain_shape(value: ir.Value) -> bool:
    """Whether an output's shape is known and starts with 1, or nobody reads it."""
    if not value.uses() and not value.is_graph_output():
        return True
    shape = dims(value)
    return shape is not None and len(shape) > 0 and shape[0] == 1


def _unsqueezed(graph: ir.Graph, place: ir.Node, value: ir.Value, shape: Dims) -> ir.Value:
    """`value` with a leading axis."""
    node = ir.node(
        "Unsqueeze",
        [value, integer_weight(graph, [0], "axes")],
        outputs=[output(f"{value.name}_unsqueezed", value.dtype, shape)],
        name=f"{value.name}_unsqueeze",
    )
    return insert_before(place, node)
