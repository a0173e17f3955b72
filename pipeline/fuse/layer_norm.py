"""(x - mean(x)) / sqrt(variance + epsilon) * weight + bias, written out, becomes one LayerNormalization.

LayerNorm: Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450. It is RMSNorm of what is left when the
mean is taken away, so the rule looks at the RMSNormalization nodes that `rms_norm` made.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from .matching import (
    dims,
    float_attribute,
    insert_before,
    integer_attribute,
    integers,
    is_weight,
    made_by,
    node_name,
    normalizes_last_axis,
    only_reader,
    other_input,
    output,
    rank,
    replace,
)
from .rule import Matches, NearMiss, Rule


class LayerNorm(Rule):
    """Anchored at an RMSNormalization of x - mean(x)."""

    name: ClassVar[str] = "layer_norm"

    def rewrite(self, model: ir.Model) -> Matches:
        """Takes the subtraction and, where one follows, the bias into one node."""
        count, missed = 0, []
        for norm in list(model.graph):
            if norm.op_type != "RMSNormalization" or norm.domain != "":
                continue
            centred = made_by(norm.inputs[0], "Sub")
            mean = None if centred is None else made_by(centred.inputs[1], "ReduceMean")
            if centred is None or mean is None or mean.inputs[0] is not centred.inputs[0]:
                continue
            reason = _obstacle(norm, centred, mean)
            if reason is not None:
                missed.append(NearMiss(node_name(norm), reason))
                continue
            last, bias = norm, None
            add = only_reader(norm.outputs[0], "Add")
            if add is not None:
                given = other_input(add, norm.outputs[0])
                if is_weight(given) and dims(given) == dims(norm.inputs[1]):
                    last, bias = add, given
            old = last.outputs[0]
            inputs = [centred.inputs[0], norm.inputs[1], *([] if bias is None else [bias])]
            fused = ir.node(
                "LayerNormalization",
                inputs,
                {"axis": -1, "epsilon": float_attribute(norm, "epsilon", 1e-5)},
                outputs=[output(f"{old.name}_layer_norm", old.dtype, dims(old))],
                name=f"{node_name(norm)}_layer_norm",
                metadata_props=dict(norm.metadata_props),
            )
            replace(old, insert_before(last, fused))
            count += 1
        return Matches(count, tuple(missed))


def _obstacle(norm: ir.Node, centred: ir.Node, mean: ir.Node) -> str | None:
    """Why a normalization of x - mean(x) is no LayerNormalization of x; None when it is."""
    axes = integers(mean.inputs[1]) if len(mean.inputs) > 1 else None
    last = axes is not None and len(axes) == 1 and axes[0] in (-1, (rank(mean.inputs[0]) or 0) - 1)
    if (
        not last
        or integer_attribute(mean, "keepdims", 1) != 1
        or not normalizes_last_axis(norm, norm.outputs[0])
    ):
        return "the mean that is taken away is not over the last axis"
    if only_reader(centred.outputs[0]) is not norm:
        return f"something else reads {centred.outputs[0].name}"
    return None
