"""A bias and the GELU of the sum become one slipway::BiasGelu."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from plugins.schemas import BIAS_GELU, DOMAIN, VERSION

from .matching import (
    dims,
    insert_before,
    is_weight,
    made_by,
    node_name,
    only_reader,
    other_input,
    output,
    replace,
)
from .rule import Matches, NearMiss, Rule


class BiasGelu(Rule):
    """Anchored at a Gelu; the bias is a constant of one element for each of the last axis."""

    name: ClassVar[str] = "bias_gelu"

    def rewrite(self, model: ir.Model) -> Matches:
        """Fuses where nothing else reads the biased value."""
        count, missed = 0, []
        for node in list(model.graph):
            if node.op_type != "Gelu" or node.domain != "":
                continue
            add = made_by(node.inputs[0], "Add")
            if add is None:
                continue
            found = _match(add)
            if isinstance(found, str):
                missed.append(NearMiss(node_name(node), found))
                continue
            x, bias = found
            old = node.outputs[0]
            approximate = node.attributes.get("approximate")
            fused = ir.node(
                BIAS_GELU.name,
                [x, bias],
                {"tanh": int(approximate is not None and approximate.as_string() == "tanh")},
                domain=DOMAIN,
                outputs=[output(f"{old.name}_bias_gelu", old.dtype, dims(old))],
                name=f"{node_name(node)}_bias_gelu",
                metadata_props=dict(node.metadata_props),
            )
            replace(old, insert_before(node, fused))
            count += 1
        if count:
            model.opset_imports[DOMAIN] = VERSION
        return Matches(count, tuple(missed))


def _match(add: ir.Node) -> tuple[ir.Value, ir.Value] | str:
    """What is biased, and the bias; or why the sum is none of a bias."""
    total = add.outputs[0]
    shape = dims(total)
    if only_reader(total) is None:
        return f"something else reads {total.name}"
    for bias in add.inputs:
        x = None if bias is None else other_input(add, bias)
        if bias is not None and is_weight(bias) and x is not None and shape and dims(x) == shape:
            if dims(bias) == shape[-1:]:
                return x, bias
            return f"the constant that is added has shape {dims(bias)}, not {list(shape[-1:])}"
    return "what is added is not constant"
