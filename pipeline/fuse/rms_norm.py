"""x / sqrt(mean(x ** 2) + epsilon) * weight, written out, becomes one RMSNormalization.

RMSNorm: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import onnx_ir as ir

from .matching import (
    dims,
    insert_before,
    integer_attribute,
    integers,
    made_by,
    node_name,
    only_reader,
    other_input,
    output,
    rank,
    replace,
    scalar,
)
from .rule import Matches, NearMiss, Rule

FIRST_OPSET = 23
"""The opset that brought RMSNormalization."""


class _Norm(NamedTuple):
    """A written-out normalization: what it reads, and the last node of it."""

    x: ir.Value
    weight: ir.Value
    epsilon: float
    last: ir.Node


class RmsNorm(Rule):
    """Anchored at the ReduceMean; the mean square may be Pow(x, 2) or x * x."""

    name: ClassVar[str] = "rms_norm"

    def rewrite(self, model: ir.Model) -> Matches:
        """Fuses what normalizes the last axis and is scaled by a weight of that axis."""
        graph = model.graph
        count, missed = 0, []
        for node in list(graph):
            if node.op_type != "ReduceMean" or node.domain != "":
                continue
            squared = _squared(node.inputs[0])
            if squared is None:
                continue
            found = _match(node, squared)
            if isinstance(found, _Norm) and model.opset_imports.get("", 0) < FIRST_OPSET:
                found = f"opset {model.opset_imports.get('', 0)} has no RMSNormalization"
            if isinstance(found, str):
                missed.append(NearMiss(node_name(node), found))
                continue
            old = found.last.outputs[0]
            fused = ir.node(
                "RMSNormalization",
                [found.x, found.weight],
                {"axis": -1, "epsilon": found.epsilon},
                outputs=[output(f"{old.name}_rms", old.dtype, dims(old))],
                name=f"{node_name(node)}_rms_norm",
                metadata_props=dict(node.metadata_props),
            )
            replace(old, insert_before(found.last, fused))
            count += 1
        return Matches(count, tuple(missed))


def _squared(value: ir.Value | None) -> ir.Value | None:
    """x, where `value` is x ** 2."""
    power = made_by(value, "Pow")
    if power is not None and scalar(power.inputs[1]) == 2.0:
        return power.inputs[0]
    product = made_by(value, "Mul")
    if product is not None and product.inputs[0] is product.inputs[1]:
        return product.inputs[0]
    return None


def _match(mean: ir.Node, x: ir.Value) -> _Norm | str:
    """The normalization around a mean square of `x`, or why it is none."""
    axes = integers(mean.inputs[1]) if len(mean.inputs) > 1 else None
    last_axis = axes is not None and len(axes) == 1 and (axes[0] == -1 or axes[0] + 1 == rank(x))
    if not last_axis or integer_attribute(mean, "keepdims", 1) != 1:
        return "the mean is not over the last axis"
    add = only_reader(mean.outputs[0], "Add")
    epsilon = None if add is None else scalar(other_input(add, mean.outputs[0]))
    if add is None or epsilon is None:
        return "no constant epsilon is added to the mean square, or something else reads the mean square"
    root = only_reader(add.outputs[0], "Sqrt")
    if root is None:
        return "the mean square plus epsilon is not just the operand of a square root"
    normalized = _normalized(root, x)
    if normalized is None:
        return "the root does not just divide the value that it was computed from"
    scaled = only_reader(normalized.outputs[0], "Mul")
    weight = None if scaled is None else other_input(scaled, normalized.outputs[0])
    if scaled is None or weight is None:
        return "no weight follows, or something else reads the unscaled value"
    hidden, shape = dims(x), dims(weight)
    if hidden is None or shape is None or len(shape) != 1 or shape[0] != hidden[-1]:
        return f"the factor that follows has shape {shape}, not one element for each of the last axis"
    return _Norm(x, weight, epsilon, scaled)


def _normalized(root: ir.Node, x: ir.Value) -> ir.Node | None:
    """The node that makes x / root."""
    divided = only_reader(root.outputs[0], "Div")
    if divided is not None:
        return divided if divided.inputs[0] is x else None
    reciprocal = only_reader(root.outputs[0], "Reciprocal")
    if reciprocal is None:
        return None
    product = only_reader(reciprocal.outputs[0], "Mul")
    if product is None or other_input(product, reciprocal.outputs[0]) is not x:
        return None
    return product
