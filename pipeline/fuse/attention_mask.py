"""Masks of the standard's Attention with a row for each query.

The standard lets a mask [batch, 1, 1, keys] stand for all queries; ONNX Runtime 1.31 wants its rows spelled out,
and every stage's graph is run by it. The rows are written once a graph, for all layers: [batch, 1, queries, keys].
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def spell_out_masks(model: ir.Model) -> None:
    """Expands masks of one row, in place."""
    graph = model.graph
    done: dict[tuple[ir.Value, object], ir.Value] = {}
    for node in list(graph):
        if node.op_type != "Attention" or node.domain != "" or len(node.inputs) < 4:
            continue
        query, mask = node.inputs[0], node.inputs[3]
        if query is None or query.shape is None or mask is None or mask.shape is None:
            continue
        length = query.shape[-2]
        if len(mask.shape) < 2 or mask.shape[-2] != 1 or length == 1:
            continue
        # Two queries of the same symbolic length share the mask; lengths without a name do not.
        key = (mask, length if isinstance(length, int) or length.value is not None else node)
        if key not in done:
            done[key] = _expanded(graph, node, query, mask, f"{mask.name}.{len(done)}")
        node.replace_input_with(3, done[key])


def _expanded(graph: ir.Graph, place: ir.Node, query: ir.Value, mask: ir.Value, name: str) -> ir.Value:
    """`mask` with one row a query; `name` is the first part of the new nodes' names."""
    assert query.shape is not None
    assert mask.shape is not None
    axes = len(mask.shape)
    one = ir.Value(
        name=f"{name}.one",
        type=ir.TensorType(ir.DataType.INT64),
        shape=ir.Shape((1,)),
        const_value=ir.tensor(np.array([1], dtype=np.int64), name=f"{name}.one"),
    )
    graph.register_initializer(one)
    # In self-attention the mask itself says how many queries there are: then nothing more reads the queries.
    same = query.shape[-2] == mask.shape[-1] and query.shape[-2] != ir.SymbolicDim(None)
    told, length = (mask, axes - 1) if same else (query, len(query.shape) - 2)
    rows = ir.node("Shape", [told], {"start": length, "end": length + 1}, name=f"{name}.rows")
    target = ir.node(
        "Concat",
        [*[one] * (axes - 2), rows.outputs[0], one],
        {"axis": 0},
        name=f"{name}.rows_shape",
    )
    expanded = ir.node("Expand", [mask, target.outputs[0]], name=f"{name}.spelled_out")
    expanded.outputs[0].type = mask.type
    expanded.outputs[0].shape = ir.Shape([*mask.shape[:-2], query.shape[-2], mask.shape[-1]])
    for node in (rows, target, expanded):
        graph.insert_before(place, node)
    return expanded.outputs[0]
