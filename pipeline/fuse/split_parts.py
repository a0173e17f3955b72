"""Parts of a packed row, sliced out one by one after a Reshape, come of one Split.

ModernBERT's projection gives query, key and value in one row, which the model views as [..., 3, heads, size] and
takes apart by index. Split of the row gives the same parts as rows.
"""

from __future__ import annotations

import math
from typing import ClassVar

import onnx_ir as ir

from .matching import (
    dims,
    insert_before,
    integer_attribute,
    integer_weight,
    integers,
    node_name,
    only_reader,
    output,
    rank,
    replace,
)
from .rule import Matches, NearMiss, Rule


class SplitParts(Rule):
    """Anchored at a Reshape that takes the last axis apart, parts first."""

    name: ClassVar[str] = "split_parts"

    def rewrite(self, model: ir.Model) -> Matches:
        """Rewrites where every reader takes one part and drops its axis."""
        count, missed = 0, []
        for node in list(model.graph):
            if node.op_type != "Reshape" or node.domain != "" or node.inputs[0] is None:
                continue
            before, after = dims(node.inputs[0]), dims(node.outputs[0])
            if before is None or after is None or len(after) < len(before) + 1:
                continue
            axis = len(before) - 1
            rest = after[axis + 1 :]
            if before[:-1] != after[:axis] or not isinstance(after[axis], int) or after[axis] == 1:
                continue
            if not all(isinstance(size, int) for size in rest) or not isinstance(before[-1], int):
                continue
            readers = list(node.outputs[0].consumers())
            parts = [_part(reader, axis) for reader in readers]
            if not any(part is not None for part in parts):
                continue
            if any(part is None for part in parts) or node.outputs[0].is_graph_output():
                missed.append(
                    NearMiss(node_name(node), "something takes more than one part, or keeps its axis")
                )
                continue
            _split(model.graph, node, int(after[axis]), [part for part in parts if part is not None])
            count += 1
        return Matches(count, tuple(missed))


def _part(reader: ir.Node, axis: int) -> tuple[int, ir.Value] | None:
    """Index and value of the part that `reader` takes; None when it does something else."""
    if reader.domain != "":
        return None
    if reader.op_type == "Gather" and reader.inputs[1] is not None and rank(reader.inputs[1]) == 0:
        index = integers(reader.inputs[1])
        if index is not None and index[0] >= 0 and integer_attribute(reader, "axis", 0) == axis:
            return index[0], reader.outputs[0]
        return None
    if reader.op_type != "Slice" or len(reader.inputs) < 4:
        return None
    axes = rank(reader.inputs[0]) or 0
    starts, ends, along = (integers(given) for given in reader.inputs[1:4])
    steps = integers(reader.inputs[4]) if len(reader.inputs) > 4 else (1,)
    if starts is None or ends is None or along is None or steps != (1,) or len(along) != 1:
        return None
    if along[0] % axes != axis or starts[0] < 0 or ends[0] != starts[0] + 1:
        return None
    squeeze = only_reader(reader.outputs[0], "Squeeze")
    dropped = None if squeeze is None or len(squeeze.inputs) < 2 else integers(squeeze.inputs[1])
    if squeeze is None or dropped is None or len(dropped) != 1 or dropped[0] % axes != axis:
        return None
    return starts[0], squeeze.outputs[0]


def _split(graph: ir.Graph, reshape: ir.Node, number: int, parts: list[tuple[int, ir.Value]]) -> None:
    """A Split of what `reshape` read, and a Reshape of each part that is read."""
    rows = reshape.inputs[0]
    before, after = dims(rows), dims(reshape.outputs[0])
    assert rows is not None
    assert before is not None
    assert after is not None
    axis = len(before) - 1
    rest = [int(size) for size in after[axis + 1 :]]
    name = node_name(reshape)
    outputs = [output(f"{name}.part_{i}", rows.dtype, (*before[:-1], math.prod(rest))) for i in range(number)]
    split = ir.node(
        "Split",
        [rows],
        {"axis": -1, "num_outputs": number},
        outputs=outputs,
        name=f"{name}.split",
        metadata_props=dict(reshape.metadata_props),
    )
    insert_before(reshape, split)
    target = integer_weight(graph, [*[0] * axis, *rest], "shape")
    apart: dict[int, ir.Value] = {}
    for index, old in parts:
        if index not in apart:
            shaped = ir.node(
                "Reshape",
                [outputs[index], target],
                outputs=[output(f"{name}.part_{index}_apart", rows.dtype, (*before[:-1], *rest))],
                name=f"{name}.part_{index}_apart",
            )
            apart[index] = insert_before(reshape, shaped)
        replace(old, apart[index])
