"""A normalization of heads moves before the transposition that puts the heads first.

It saves no node itself: rows stay rows on the way to rotary embedding and attention, whose rules then find them.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from .matching import (
    dims,
    insert_before,
    made_by,
    node_name,
    normalizes_last_axis,
    only_reader,
    output,
    rank,
    replace,
)
from .rule import Matches, NearMiss, Rule


class HeadNorm(Rule):
    """Anchored at a normalization of the last axis, which the transposition leaves last."""

    name: ClassVar[str] = "head_norm"

    def rewrite(self, model: ir.Model) -> Matches:
        """Swaps the two where only the normalization reads what was transposed."""
        count, missed = 0, []
        for norm in list(model.graph):
            if norm.op_type not in ("RMSNormalization", "LayerNormalization") or norm.domain != "":
                continue
            transpose = made_by(norm.inputs[0], "Transpose")
            attribute = None if transpose is None else transpose.attributes.get("perm")
            if transpose is None or attribute is None:
                continue
            reason = _obstacle(norm, transpose, tuple(attribute.as_ints()))
            if reason is not None:
                missed.append(NearMiss(node_name(norm), reason))
                continue
            source, old = transpose.inputs[0], norm.outputs[0]
            attributes = {**norm.attributes, "axis": ir.AttrInt64("axis", -1)}
            normalized = ir.Node(
                "",
                norm.op_type,
                [source, *norm.inputs[1:]],
                attributes,
                outputs=[output(f"{old.name}_rows", old.dtype, dims(source))],
                name=norm.name,
                metadata_props=dict(norm.metadata_props),
            )
            moved = ir.node(
                "Transpose",
                [insert_before(norm, normalized)],
                {"perm": list(attribute.as_ints())},
                outputs=[output(f"{old.name}_transposed", old.dtype, dims(old))],
                name=node_name(transpose),
                metadata_props=dict(transpose.metadata_props),
            )
            replace(old, insert_before(norm, moved))
            count += 1
        return Matches(count, tuple(missed))


def _obstacle(norm: ir.Node, transpose: ir.Node, order: tuple[int, ...]) -> str | None:
    """Why the two cannot change places; None when they can."""
    if order[-1] != len(order) - 1 or not normalizes_last_axis(norm, norm.outputs[0]):
        return "the transposition moves the axis that is normalized"
    if only_reader(transpose.outputs[0]) is not norm:
        return f"something else reads {transpose.outputs[0].name}"
    if any(value.uses() or value.is_graph_output() for value in norm.outputs[1:]):
        return "the mean or the deviation is read too"
    if any(value is not None and rank(value) != 1 for value in norm.inputs[1:]):
        return "the weight has more than the last axis"
    return None
