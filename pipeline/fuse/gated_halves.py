"""activation(first half) * second half becomes one slipway::SwiGLU or slipway::GeGLU.

SwiGLU and GeGLU: Shazeer 2020, https://arxiv.org/abs/2002.05202.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from plugins.schemas import DOMAIN, GEGLU, SWIGLU, VERSION

from .gating import Activation, Gated, gated
from .matching import dims, insert_before, integer_attribute, made_by, node_name, output, rank, replace
from .rule import Matches, NearMiss, Rule


class _GatedHalves(Rule):
    """The two halves come from one Split."""

    operator: ClassVar[str]
    activations: ClassVar[dict[Activation, dict[str, int]]]
    """The activations that the operator has, and its attributes for each."""

    def rewrite(self, model: ir.Model) -> Matches:
        """Fuses equal halves of the last axis, gate first, that nobody else reads."""
        count, missed = 0, []
        for node in list(model.graph):
            found = gated(node)
            if found is None or found.activation not in self.activations:
                continue
            split = made_by(found.gate, "Split")
            if split is None or split is not made_by(found.up, "Split"):
                continue
            reason = _obstacle(found, split)
            if reason is not None:
                missed.append(NearMiss(node_name(node), reason))
                continue
            old = node.outputs[0]
            fused = ir.node(
                self.operator,
                [split.inputs[0]],
                self.activations[found.activation],
                domain=DOMAIN,
                outputs=[output(f"{old.name}_{self.name}", old.dtype, dims(old))],
                name=f"{node_name(node)}_{self.name}",
                metadata_props=dict(node.metadata_props),
            )
            replace(old, insert_before(node, fused))
            count += 1
        if count:
            model.opset_imports[DOMAIN] = VERSION
        return Matches(count, tuple(missed))


class SwiGlu(_GatedHalves):
    """The activation is Swish or x * sigmoid(x)."""

    name: ClassVar[str] = "swiglu"
    operator = SWIGLU.name
    activations: ClassVar[dict[Activation, dict[str, int]]] = {"silu": {}}


class GeGlu(_GatedHalves):
    """The activation is Gelu, by erf or by tanh."""

    name: ClassVar[str] = "geglu"
    operator = GEGLU.name
    activations: ClassVar[dict[Activation, dict[str, int]]] = {"gelu": {"tanh": 0}, "tanh_gelu": {"tanh": 1}}


def _obstacle(found: Gated, split: ir.Node) -> str | None:
    """Why the halves of a split cannot be fused; None when they can."""
    if len(split.outputs) != 2:
        return f"the split has {len(split.outputs)} parts"
    if integer_attribute(split, "axis", 0) not in (-1, (rank(split.inputs[0]) or 0) - 1):
        return "the split is not along the last axis"
    if found.gate is not split.outputs[0]:
        return "the gate is the second half"
    gate, up = dims(found.gate), dims(found.up)
    if gate is None or gate != up:
        return f"the halves have shapes {gate} and {up}, not one and the same"
    return found.obstacle()
