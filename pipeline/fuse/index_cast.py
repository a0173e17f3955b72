"""Indices that are widened to int64 only to be gathered with: Gather takes int32 as it is."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from .rule import Matches, Rule


class IndexCast(Rule):
    """The contract's indices are int32; torch's index_select wants int64."""

    name: ClassVar[str] = "index_cast"

    def rewrite(self, model: ir.Model) -> Matches:
        """Drops widening casts whose result is read only as the indices of Gather."""
        count = 0
        for node in list(model.graph):
            if node.op_type != "Cast" or node.domain != "":
                continue
            indices, result = node.inputs[0], node.outputs[0]
            if indices is None or indices.dtype != ir.DataType.INT32 or result.is_graph_output():
                continue
            if node.attributes["to"].as_int() != ir.DataType.INT64:
                continue
            if any(use.node.op_type != "Gather" or use.node.domain or use.idx != 1 for use in result.uses()):
                continue
            result.replace_all_uses_with(indices)
            count += 1
        return Matches(count)
