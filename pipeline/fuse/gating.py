"""silu(gate) * up: how it is written in a graph."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from .matching import float_attribute, made_by, other_input


class Gated(NamedTuple):
    """silu(gate) * up, and the nodes that compute it from the two."""

    gate: ir.Value
    up: ir.Value
    product: ir.Node
    inner: tuple[ir.Node, ...]  # the nodes of silu

    def obstacle(self) -> str | None:
        """Why the whole cannot be replaced: something else reads a value inside. None when nothing does."""
        inside = [self.gate, self.up, *(node.outputs[0] for node in self.inner)]
        own = {self.product, *self.inner}
        for value in inside:
            if value.is_graph_output() or not own.issuperset(value.consumers()):
                return f"something else reads {value.name}"
        return None


def gated(product: ir.Node) -> Gated | None:
    """`product` as silu(gate) * up; None when it is something else."""
    if product.op_type != "Mul" or product.domain != "":
        return None
    for activated in product.inputs:
        assert activated is not None
        up = other_input(product, activated)
        found = _silu(activated)
        if found is not None and up is not None:
            gate, inner = found
            return Gated(gate, up, product, inner)
    return None


def _silu(value: ir.Value) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """x and the nodes between, where `value` is x * sigmoid(x)."""
    swish = made_by(value, "Swish")
    if swish is not None and float_attribute(swish, "alpha", 1.0) == 1.0:
        x = swish.inputs[0]
        return None if x is None else (x, (swish,))
    multiply = made_by(value, "Mul")
    if multiply is None:
        return None
    for operand in multiply.inputs:
        sigmoid = made_by(operand, "Sigmoid")
        if sigmoid is not None and operand is not None:
            x = sigmoid.inputs[0]
            if x is not None and other_input(multiply, operand) is x:
                return x, (sigmoid, multiply)
    return None
