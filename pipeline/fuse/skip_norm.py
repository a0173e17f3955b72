"""What the rules for residual sums share: a sum and the normalization of it become one node of domain `slipway`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import onnx_ir as ir

from plugins.schemas import DOMAIN, VERSION

from .matching import dims, float_attribute, insert_before, made_by, node_name, output, replace
from .rule import Matches, NearMiss, Rule

if TYPE_CHECKING:
    from plugins.schemas import OperatorSchema


class SkipNorm(Rule):
    """The sum stays available as the second output: the next residual reads it."""

    normalization: ClassVar[str]
    """The standard operator that reads the sum."""
    fused: ClassVar[OperatorSchema]

    @abstractmethod
    def inputs(self, norm: ir.Node, add: ir.Node) -> Sequence[ir.Value | None] | str:
        """Inputs of the fused node, or why the sum and the normalization cannot become one."""

    def rewrite(self, model: ir.Model) -> Matches:
        """Fuses every normalization of a sum that `inputs` has no objection to."""
        count, missed = 0, []
        for norm in list(model.graph):
            if norm.op_type != self.normalization or norm.domain != "":
                continue
            add = made_by(norm.inputs[0], "Add")
            if add is None:
                continue
            inputs = self.inputs(norm, add)
            if isinstance(inputs, str):
                missed.append(NearMiss(node_name(norm), inputs))
                continue
            total, normalized = add.outputs[0], norm.outputs[0]
            fused = ir.node(
                self.fused.name,
                inputs,
                {"epsilon": float_attribute(norm, "epsilon", 1e-5)},
                domain=DOMAIN,
                outputs=[
                    output(f"{normalized.name}_skip", normalized.dtype, dims(normalized)),
                    output(f"{total.name}_skip", total.dtype, dims(total)),
                ],
                name=f"{node_name(norm)}_skip",
                metadata_props=dict(norm.metadata_props),
            )
            insert_before(add, fused)
            replace(normalized, fused.outputs[0])
            replace(total, fused.outputs[1])
            count += 1
        if count:
            model.opset_imports[DOMAIN] = VERSION
        return Matches(count, tuple(missed))
