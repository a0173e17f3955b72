"""A residual sum and the RMSNormalization of it become one slipway::SkipRMSNormalization."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from plugins.schemas import DOMAIN, SKIP_RMS_NORMALIZATION, VERSION

from .matching import (
    dims,
    float_attribute,
    insert_before,
    made_by,
    node_name,
    normalizes_last_axis,
    output,
    replace,
)
from .rule import Matches, NearMiss, Rule


class SkipRmsNorm(Rule):
    """The sum stays available as the second output: the next residual reads it."""

    name: ClassVar[str] = "skip_rms_norm"

    def rewrite(self, model: ir.Model) -> Matches:
        """Fuses sums of two values of one shape; a sum that broadcasts (a bias) is left alone."""
        count, missed = 0, []
        for norm in list(model.graph):
            if norm.op_type != "RMSNormalization" or norm.domain != "":
                continue
            add = made_by(norm.inputs[0], "Add")
            if add is None:
                continue
            reason = _obstacle(norm, add)
            if reason is not None:
                missed.append(NearMiss(node_name(norm), reason))
                continue
            total, normalized = add.outputs[0], norm.outputs[0]
            fused = ir.node(
                SKIP_RMS_NORMALIZATION.name,
                [add.inputs[0], add.inputs[1], norm.inputs[1]],
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


def _obstacle(norm: ir.Node, add: ir.Node) -> str | None:
    """Why a normalization of a sum cannot become one node; None when it can."""
    first, second = dims(add.inputs[0]), dims(add.inputs[1])
    if first is None or first != second:
        return f"the summands have shapes {first} and {second}, not one and the same"
    if not normalizes_last_axis(norm, norm.outputs[0]):
        return "the normalization is not over the last axis"
    weight = norm.inputs[1]
    # The fused node stands where the sum stood, so its weight must exist there already.
    if weight is None or weight.producer() is not None:
        return "the normalization's weight is computed in the graph"
    return None
