"""A weight that the graph scales or shifts by a constant at run time is stored that way.

Gemma's norms multiply by 1 + weight. The result is rounded once, as the graph would round it.
"""

from __future__ import annotations

from dataclasses import replace as changed
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .matching import add_weight, dims, is_weight, node_name, replace, scalar
from .rule import Matches, NearMiss, Rule
from .weights import computed, read_origin, write_origin

_SIGNS = {"Add": "+", "Sub": "-", "Mul": "*", "Div": "/"}


class WeightArithmetic(Rule):
    """Anchored at a sum, difference, product or quotient of a parameter and one number."""

    name: ClassVar[str] = "weight_arithmetic"

    def rewrite(self, model: ir.Model) -> Matches:
        """Computes where nothing else reads the parameter, so that nothing is stored twice."""
        count, missed = 0, []
        for node in list(model.graph):
            sign = _SIGNS.get(node.op_type) if node.domain == "" else None
            if sign is None or len(node.inputs) != 2 or node.outputs[0].is_graph_output():
                continue
            first, second = node.inputs
            if sign in "+*" and is_weight(second) and scalar(first) is not None:
                first, second = second, first
            number = scalar(second)
            if first is None or number is None or not is_weight(first) or not read_origin(first):
                continue
            if dims(first) != dims(node.outputs[0]) or first.dtype is None:
                continue
            if len(first.uses()) > 1:
                missed.append(NearMiss(node_name(node), f"something else reads the weight {first.name}"))
                continue
            _store(model.graph, node, first, sign, number)
            count += 1
        return Matches(count, tuple(missed))


def _store(graph: ir.Graph, node: ir.Node, weight: ir.Value, sign: str, number: float) -> None:
    """Everyone who read the node's result reads a weight under the parameter's name."""
    tensor, name = weight.const_value, weight.name or ""
    assert tensor is not None
    operation = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}[sign]

    def make() -> npt.NDArray[Any]:
        result: npt.NDArray[Any] = operation(tensor.numpy().astype(np.float64), number)
        return result

    origins = [
        changed(origin, folded=(*origin.folded, f"{sign} {number:g}")) for origin in read_origin(weight)
    ]
    del graph.initializers[name]
    weight.name = f"{name}.as_exported"
    stored = add_weight(graph, computed(tensor.shape.numpy(), tensor.dtype, make, name), name)
    write_origin(stored, origins)
    replace(node.outputs[0], stored)
