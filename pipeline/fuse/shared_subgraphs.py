"""What is computed twice from the same values is computed once, and what nobody reads is not computed."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes import common as passes

from .rule import Matches, Rule


class SharedSubgraphs(Rule):
    """Nodes of one operator, attributes and inputs become one; nodes that draw random numbers stay apart."""

    name: ClassVar[str] = "shared_subgraphs"

    def rewrite(self, model: ir.Model) -> Matches:
        """Counts the nodes that went away, those without readers among them."""
        before = len(model.graph)
        ir.passes.Sequential(passes.CommonSubexpressionEliminationPass(), passes.RemoveUnusedNodesPass())(
            model
        )
        return Matches(before - len(model.graph))
