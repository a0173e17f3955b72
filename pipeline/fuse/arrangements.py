"""Chains of reshapes and transpositions: two in a row become one, or none.

What moves nothing at all through a longer chain, and axes of size 1, are `unit_axis`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from .matching import (
    dims,
    insert_before,
    integer_attribute,
    integer_weight,
    integers,
    made_by,
    node_name,
    output,
    replace,
)
from .rule import Matches, NearMiss, Rule

_SHAPES_ONLY = ("Reshape", "Squeeze", "Unsqueeze", "Flatten")


class Arrangements(Rule):
    """A Transpose of a Transpose is one; a change of shape after another is one Reshape."""

    name: ClassVar[str] = "arrangements"

    def rewrite(self, model: ir.Model) -> Matches:
        """Counts the nodes that were passed over, and the computed shapes that became constants."""
        count, missed = 0, []
        for node in list(model.graph):
            result = node.outputs[0]
            if node.domain != "" or not (result.uses() or result.is_graph_output()):
                continue
            if node.op_type == "Transpose":
                count += _transposed(node)
            elif node.op_type in _SHAPES_ONLY:
                done = _reshaped(model.graph, node) or _written_down(model.graph, node)
                if isinstance(done, str):
                    missed.append(NearMiss(node_name(node), done))
                else:
                    count += done
        return Matches(count, tuple(missed))


def _transposed(node: ir.Node) -> bool:
    """Joins a Transpose with the one before it, or drops it when it moves nothing."""
    order = _order(node)
    source = node.inputs[0]
    if order is None or source is None:
        return False
    inner = made_by(source, "Transpose")
    first = None if inner is None else _order(inner)
    if first is not None and inner is not None:
        source, order = inner.inputs[0], tuple(first[axis] for axis in order)
    elif order != tuple(range(len(order))):
        return False
    assert source is not None
    old = node.outputs[0]
    if order == tuple(range(len(order))):
        if old.is_graph_output() and (source.is_graph_input() or source.is_graph_output()):
            return False
        replace(old, source)
        return True
    joined = ir.node(
        "Transpose",
        [source],
        {"perm": list(order)},
        outputs=[output(f"{old.name}_joined", old.dtype, dims(old))],
        name=node_name(node),
        metadata_props=dict(node.metadata_props),
    )
    replace(old, insert_before(node, joined))
    return True


def _order(node: ir.Node) -> tuple[int, ...] | None:
    attribute = node.attributes.get("perm")
    if attribute is not None:
        return tuple(attribute.as_ints())
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return None if shape is None else tuple(reversed(range(len(shape))))


def _reshaped(graph: ir.Graph, node: ir.Node) -> bool | str:
    """Joins a change of shape with the one before it; a reason when the joined shape cannot be written."""
    inner = next((made for kind in _SHAPES_ONLY if (made := made_by(node.inputs[0], kind)) is not None), None)
    if inner is None or inner.inputs[0] is None:
        return False
    source, old = inner.inputs[0], node.outputs[0]
    shape, before = dims(old), dims(source)
    if shape is None:
        return "the shape of the result is not known"
    if shape == before:
        if old.is_graph_output() and (source.is_graph_input() or source.is_graph_output()):
            return False
        replace(old, source)
        return True
    if node.op_type == "Reshape" and _fixed(node):
        target: ir.Value | None = node.inputs[1]  # says all: it does not look at its operand's axes
    else:
        sizes = _written(shape, before)
        target = None if sizes is None else integer_weight(graph, sizes, "shape")
    if target is None:
        return f"the shape {list(shape)} has more than one size that is known only at run time"
    joined = ir.node(
        "Reshape",
        [source, target],
        {"allowzero": integer_attribute(node, "allowzero", 0)} if target is node.inputs[-1] else {},
        outputs=[output(f"{old.name}_joined", old.dtype, shape)],
        name=node_name(node),
        metadata_props=dict(node.metadata_props),
    )
    replace(old, insert_before(node, joined))
    return True


def _written_down(graph: ir.Graph, node: ir.Node) -> bool:
    """Gives a Reshape whose shape is computed a constant one, where the sizes of its result are known."""
    shape = dims(node.outputs[0])
    if node.op_type != "Reshape" or integers(node.inputs[1]) is not None or shape is None:
        return False
    sizes = _written(shape, dims(node.inputs[0]))
    if sizes is None:
        return False
    node.replace_input_with(1, integer_weight(graph, sizes, "shape"))
    node.attributes.pop("allowzero", None)
    return True


def _fixed(node: ir.Node) -> bool:
    """Whether a Reshape's target says every size itself: no 0 that copies a size of its operand."""
    asked = integers(node.inputs[1])
    if asked is None:  # computed: sizes of the graph's inputs, never copied
        return bool(integer_attribute(node, "allowzero", 0))
    return 0 not in asked


def _written(shape: Sequence[int | str], before: Sequence[int | str] | None) -> list[int] | None:
    """`shape` as the target of a Reshape of something of shape `before`; None when that cannot be written."""
    sizes: list[int] = []
    unknown = 0
    for axis, size in enumerate(shape):
        if isinstance(size, int):
            if size == 0:
                return None
            sizes.append(size)
        elif before is not None and axis < len(before) and before[axis] == size:
            sizes.append(0)
        else:
            sizes.append(-1)
            unknown += 1
    return sizes if unknown <= 1 else None
