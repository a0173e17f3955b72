"""activation(gate) * up: how it is written in a graph."""

from __future__ import annotations

from typing import Literal, NamedTuple

import onnx_ir as ir

from .matching import float_attribute, made_by, other_input

Activation = Literal["silu", "gelu", "tanh_gelu"]


class Gated(NamedTuple):
    """activation(gate) * up, and the nodes that compute it from the two."""

    activation: Activation
    gate: ir.Value
    up: ir.Value
    product: ir.Node
    inner: tuple[ir.Node, ...]  # the nodes of the activation

    def obstacle(self) -> str | None:
        """Why the whole cannot be replaced: something else reads a value inside. None when nothing does."""
        inside = [self.gate, self.up, *(node.outputs[0] for node in self.inner)]
        own = {self.product, *self.inner}
        for value in inside:
            if value.is_graph_output() or not own.issuperset(value.consumers()):
                return f"something else reads {value.name}"
        return None


def gated(product: ir.Node) -> Gated | None:
    """`product` as activation(gate) * up; None when it is something else."""
    if product.op_type != "Mul" or product.domain != "":
        return None
    for activated in product.inputs:
        assert activated is not None
        up = other_input(product, activated)
        found = _activation(activated)
        if found is not None and up is not None:
            activation, gate, inner = found
            return Gated(activation, gate, up, product, inner)
    return None


def _activation(value: ir.Value) -> tuple[Activation, ir.Value, tuple[ir.Node, ...]] | None:
    """Activation, x and the nodes between, where `value` is an activation of x."""
    gelu = made_by(value, "Gelu")
    if gelu is not None and gelu.inputs[0] is not None:
        approximate = gelu.attributes.get("approximate")
        tanh = approximate is not None and approximate.as_string() == "tanh"
        return ("tanh_gelu" if tanh else "gelu"), gelu.inputs[0], (gelu,)
    swish = made_by(value, "Swish")
    if swish is not None and float_attribute(swish, "alpha", 1.0) == 1.0:
        x = swish.inputs[0]
        return None if x is None else ("silu", x, (swish,))
    multiply = made_by(value, "Mul")
    if multiply is None:
        return None
    for operand in multiply.inputs:
        sigmoid = made_by(operand, "Sigmoid")
        if sigmoid is not None and operand is not None:
            x = sigmoid.inputs[0]
            if x is not None and other_input(multiply, operand) is x:
                return "silu", x, (sigmoid, multiply)
    return None
