"""Key and value pools as outputs of a graph."""

from __future__ import annotations

import onnx_ir as ir

from .schemas import DOMAIN, PAGED_ATTENTION


def drop_pool_outputs(model: ir.Model) -> None:
    """Takes the pools away from the outputs of the attention nodes and of the graph, in place.

    The operator then writes the new keys and values through its inputs.
    """
    attention = [
        node for node in model.graph if node.domain == DOMAIN and node.op_type == PAGED_ATTENTION.name
    ]
    pools = {value for node in attention for value in node.outputs[1:]}
    kept = [value for value in model.graph.outputs if value not in pools]
    model.graph.outputs.clear()
    model.graph.outputs.extend(kept)
    for node in attention:
        node.resize_outputs(1)
