"""One node in the place of another, as lowerings write a target's own operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir


def put_in_place(
    model: ir.Model,
    node: ir.Node,
    operator: str,
    domain: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int],
    last: ir.Node | None = None,
) -> None:
    """`domain::operator` instead of `node`, in place: the output keeps its name, the node its name and notes.

    last: the one reader of `node`'s output, where the operator computes it too and its output takes that place.
    """
    end = last or node
    old = end.outputs[0]
    new = ir.Value(name=f"{old.name}_lowered", type=old.type, shape=old.shape)
    made = ir.node(
        operator,
        inputs,
        attributes,
        domain=domain,
        outputs=[new],
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    model.graph.insert_before(end, made)
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    model.graph.remove([end] if end is node else [node, end], safe=True)
    new.name = name
    model.opset_imports.setdefault(domain, 1)
