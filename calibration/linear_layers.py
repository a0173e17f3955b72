"""The linear layers of a graph: products of an activation with a weight, whichever way the weight lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Weight = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class LinearLayer:
    """A MatMul or Gemm with a matrix of its own. `transposed`: the graph holds the weight as [in, out]."""

    node: ir.Node
    weight: ir.Value
    inputs: ir.Value  # what is multiplied, [..., in]
    transposed: bool

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.weight.name or ""

    @property
    def bias(self) -> ir.Value | None:
        """The bias [out] that the node itself adds."""
        value = self.node.inputs[2] if self.node.op_type == "Gemm" and len(self.node.inputs) > 2 else None
        return value if value is not None and value.const_value is not None else None

    def read(self) -> Weight:
        """The weight as float32 [out, in]."""
        assert self.weight.const_value is not None
        array = self.weight.const_value.numpy().astype(np.float32, copy=False)
        return array.T if self.transposed else array

    def write(self, weight: npt.NDArray[np.floating[Any]]) -> None:
        """Gives the graph another weight [out, in]; whatever else reads it gets it too."""
        replace_weight(self.weight, weight.T if self.transposed else weight)


def linear_layers(model: ir.Model) -> list[LinearLayer]:
    """In the order of computation. A weight that several nodes share comes once, with the first of them."""
    found: dict[ir.Value, LinearLayer] = {}
    for node in model.graph:
        layer = linear_layer(node)
        if layer is not None:
            found.setdefault(layer.weight, layer)
    return list(found.values())


def groups(layers: Sequence[LinearLayer]) -> list[list[LinearLayer]]:
    """Layers that read the same tensor together, in the order of the first of each."""
    by_input: dict[ir.Value, list[LinearLayer]] = {}
    for layer in layers:
        by_input.setdefault(layer.inputs, []).append(layer)
    return list(by_input.values())


def replace_weight(value: ir.Value, array: npt.NDArray[np.floating[Any]]) -> None:
    """Other numbers for a weight, in its own type; name and notes stay."""
    assert value.const_value is not None
    kind = value.const_value.dtype
    value.const_value = ir.tensor(np.ascontiguousarray(array).astype(kind.numpy()), kind, name=value.name)


def is_weight(value: ir.Value | None) -> bool:
    """Whether a value is an initializer with numbers and no input."""
    return (
        value is not None
        and value.const_value is not None
        and value.is_initializer()
        and not value.is_graph_input()
    )


def linear_layer(node: ir.Node) -> LinearLayer | None:
    """`node` as a linear layer; None when it is none."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm"):
        return None
    inputs, weight = node.inputs[0], node.inputs[1]
    if inputs is None or weight is None or not is_weight(weight) or is_weight(inputs):
        return None
    assert weight.const_value is not None
    if len(weight.const_value.shape) != 2 or weight.const_value.dtype not in _FLOATS:
        return None
    if node.op_type == "MatMul":
        return LinearLayer(node, weight, inputs, transposed=True)
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0:
        return None
    return LinearLayer(node, weight, inputs, transposed=not attributes.get("transB", 0))


_FLOATS = frozenset((ir.DataType.FLOAT, ir.DataType.FLOAT16))
