"""Rows that nobody wants are dropped as early as can be.

The graph chooses the rows whose logits are wanted behind the last norm. Everything between the last attention and that
choice treats each row by itself, so the choice moves up to there: of a prefill, the last layer's feed-forward network
and norms see one row instead of the whole chunk.
"""

from __future__ import annotations

import onnx_ir as ir

from pipeline.fuse.matching import dims, insert_before, integer_attribute, output

BY_ROW = frozenset(
    (
        *("Add", "Sub", "Mul", "Div", "Cast", "Identity"),
        *("Sigmoid", "Tanh", "Relu", "Gelu", "Erf", "Swish", "Pow", "Sqrt", "Neg"),
        *("RMSNormalization", "LayerNormalization", "Split", "MatMul", "Gemm"),
    )
)
"""Standard operators that can treat each row of their first axis by itself; `_by_row` looks whether they do."""


def choose_rows_early(model: ir.Model, indices: str = "logits_indices") -> int:
    """Moves the Gather of rows by the input `indices` up, in place. Gives how many nodes see fewer rows now."""
    graph = model.graph
    (chosen,) = [value for value in graph.inputs if value.name == indices]
    readers = list(chosen.consumers())
    gathers = [node for node in readers if _gathers_rows(node, chosen)]
    if len(gathers) != 1 or len(readers) != 1:
        return 0
    (gather,) = gathers
    rows = gather.inputs[0]
    assert rows is not None
    moved = _only_for(gather, rows)
    if not moved:
        return 0
    tokens = (dims(rows) or ("tokens",))[0]
    above: dict[ir.Value, ir.Value] = {}
    for node in moved:
        for place, value in enumerate(node.inputs):
            if value is None or value.producer() in moved or not _is_rows(value, tokens):
                continue
            if value not in above:
                above[value] = _chosen(gather, value, chosen, node)
            node.replace_input_with(place, above[value])
        for made in node.outputs:
            if made.shape is not None:
                made.shape = ir.Shape(("selected", *made.shape[1:]))
    gather.outputs[0].replace_all_uses_with(rows, replace_graph_outputs=True)
    graph.remove(gather, safe=True)
    graph.sort()
    return len(moved)


def _gathers_rows(node: ir.Node, indices: ir.Value) -> bool:
    """Whether the node takes whole rows by `indices`."""
    shape = dims(node.inputs[0])
    if node.op_type != "Gather" or node.inputs[1] is not indices or not shape:
        return False
    return integer_attribute(node, "axis", 0) % len(shape) == 0


def _only_for(gather: ir.Node, rows: ir.Value) -> list[ir.Node]:
    """Nodes that treat rows by themselves and whose results nobody but `gather` needs in the end, in graph order."""
    tokens = (dims(rows) or ("tokens",))[0]
    found: set[ir.Node] = set()
    graph = gather.graph
    assert isinstance(graph, ir.Graph)
    for node in reversed(list(graph)):
        readers = {reader for made in node.outputs for reader in made.consumers()}
        ends = any(made.is_graph_output() for made in node.outputs)
        if readers and not ends and readers <= found | {gather} and _by_row(node, tokens):
            found.add(node)
    return [node for node in graph if node in found]


def _by_row(node: ir.Node, tokens: int | str) -> bool:
    """Whether row r of the results depends on row r of the inputs alone."""
    if node.op_type not in BY_ROW or node.domain != "":
        return False
    data = [value for value in node.inputs if value is not None and not value.is_initializer()]
    if not data or not all(_is_rows(value, tokens) for value in data):
        return False
    if any(len(dims(value) or ()) < 2 for value in data):
        return False  # a vector's one axis may stand for columns
    if node.op_type in ("MatMul", "Gemm"):
        return data == [node.inputs[0]] and not integer_attribute(node, "transA", 0)
    rank = len(dims(data[0]) or ())
    if node.op_type in ("RMSNormalization", "LayerNormalization", "Split"):
        axis = integer_attribute(node, "axis", 0 if node.op_type == "Split" else -1)
        return data == [node.inputs[0]] and axis % rank != 0
    return all(len(dims(value) or ()) == rank for value in data) and _constants_fit(node, rank)


def _constants_fit(node: ir.Node, rank: int) -> bool:
    """Whether constants beside the data are the same for all rows."""
    for value in node.inputs:
        if value is not None and value.is_initializer():
            shape = dims(value) or ()
            if len(shape) > rank or (len(shape) == rank and shape[0] != 1):
                return False
    return True


def _is_rows(value: ir.Value, tokens: int | str) -> bool:
    shape = dims(value)
    return shape is not None and len(shape) > 0 and shape[0] == tokens and not value.is_initializer()


def _chosen(gather: ir.Node, value: ir.Value, chosen: ir.Value, before: ir.Node) -> ir.Value:
    """The wanted rows of `value`."""
    shape = dims(value) or ()
    node = ir.node(
        "Gather",
        [value, chosen],
        {"axis": 0},
        outputs=[output(f"{value.name}_wanted", value.dtype, ("selected", *shape[1:]))],
        name=f"{gather.name}/{value.name}",
        metadata_props=dict(gather.metadata_props),
    )
    return insert_before(before, node)
