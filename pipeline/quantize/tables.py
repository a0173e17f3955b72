"""Embedding tables that a fused operator holds, taken out again so that their rows can be codes."""

from __future__ import annotations

import onnx_ir as ir

from plugins.schemas import DOMAIN, EMBED_LAYER_NORMALIZATION, SKIP_LAYER_NORMALIZATION


def free_tables(model: ir.Model) -> None:
    """EmbedLayerNormalization becomes Gathers and SkipLayerNormalization, in place: the same sum, normalized."""
    schema = EMBED_LAYER_NORMALIZATION
    for node in list(model.graph):
        if node.domain != DOMAIN or node.op_type != schema.name:
            continue
        given = dict(zip((item.name for item in schema.inputs), node.inputs, strict=False))
        total = _rows(node, given["table"], given["ids"], "table")
        if given.get("third_table") is not None:
            third = _rows(node, given["third_table"], given["third_ids"], "third_table")
            total = _before(node, ir.node("Add", [total, third], name=f"{node.name}.add"), total)
        second = _rows(node, given["second_table"], given["second_ids"], "second_table")
        inputs = [total, second, given["weight"], given.get("bias")]
        made = ir.node(
            SKIP_LAYER_NORMALIZATION.name,
            inputs if inputs[-1] is not None else inputs[:-1],
            {"epsilon": node.attributes.get_float("epsilon", 1e-5)},
            domain=DOMAIN,
            num_outputs=len(node.outputs),
            name=node.name,
            metadata_props=dict(node.metadata_props),
        )
        model.graph.insert_before(node, made)
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.type, new.shape, name = old.type, old.shape, old.name
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            old.name, new.name = f"{name}.fused", name
        model.graph.remove(node, safe=True)


def _rows(node: ir.Node, table: ir.Value | None, ids: ir.Value | None, name: str) -> ir.Value:
    """Rows of a table, looked up before `node`."""
    assert table is not None
    return _before(node, ir.node("Gather", [table, ids], {"axis": 0}, name=f"{node.name}.{name}"), table)


def _before(node: ir.Node, made: ir.Node, like: ir.Value) -> ir.Value:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    graph.insert_before(node, made)
    made.outputs[0].name, made.outputs[0].type = f"{made.name}.output", like.type
    return made.outputs[0]
