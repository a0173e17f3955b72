"""Several products of one value with constant weights, done as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir

from .matching import add_weight, dims, insert_before, is_weight, made_by, output
from .weights import packed, packed_origin, write_origin


class Product(NamedTuple):
    """x @ weight, or x @ weight + bias: weight [in, out], bias [out]."""

    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    result: ir.Value
    inner: ir.Value  # the product without the bias; the result itself when there is none

    @property
    def width(self) -> int:
        """Elements of the result's last axis."""
        shape = dims(self.weight)
        assert shape is not None
        assert isinstance(shape[1], int)
        return shape[1]


def product(value: ir.Value | None) -> Product | None:
    """`value` as a product with a constant matrix; None when it is something else."""
    add = made_by(value, "Add")
    if add is not None and value is not None:
        for bias, other in (add.inputs, tuple(reversed(add.inputs))):
            inner = product(other)
            if inner is not None and inner.bias is None and is_weight(bias):
                shape = dims(bias)
                if shape == (inner.width,):
                    return inner._replace(bias=bias, result=value)
        return None
    node = made_by(value, "MatMul")
    if node is None or value is None:
        return None
    x, weight = node.inputs
    shape = dims(weight)
    if x is None or weight is None or not is_weight(weight) or shape is None or len(shape) != 2:
        return None
    return Product(x, weight, None, value, value)


def obstacle(products: Sequence[Product], readers: Sequence[ir.Node]) -> str | None:
    """Why the products cannot be done as one; None when they can. `readers`: who reads the packed result."""
    first = products[0]
    if any(item.x is not first.x for item in products):
        return "the products have different inputs"
    if len({item.bias is None for item in products}) > 1:
        return "some of the products have a bias and some have none"
    if len({item.weight.dtype for item in products}) > 1:
        return "the weights have different types"
    if len({item.weight for item in products}) < len(products):
        return "two products share their weight"
    for item in products:
        if len(item.weight.uses()) > 1:
            return f"something else reads the weight {item.weight.name}"
        if item.inner is not item.result and len(item.inner.uses()) > 1:
            return f"something else reads {item.inner.name}"
        if item.result.is_graph_output() or not set(readers).issuperset(item.result.consumers()):
            return f"something else reads {item.result.name}"
    return None


def pack(graph: ir.Graph, products: Sequence[Product], place: ir.Node, name: str) -> ir.Value:
    """One product whose result holds those of `products` one after the other along the last axis.

    The new weight is called `name`.weight and keeps the origin of each slice. The node stands before `place`.
    """
    first = products[0]
    weight = _packed_weight(graph, [item.weight for item in products], f"{name}.weight")
    shape = dims(first.result)
    width = sum(item.width for item in products)
    packed_shape = None if shape is None else (*shape[:-1], width)
    matmul = ir.node(
        "MatMul",
        [first.x, weight],
        outputs=[output(f"{name}.product", first.result.dtype, packed_shape)],
        name=f"{name}.matmul",
    )
    result = insert_before(place, matmul)
    biases = [item.bias for item in products if item.bias is not None]
    if biases:
        bias = _packed_weight(graph, biases, f"{name}.bias")
        add = ir.node(
            "Add",
            [result, bias],
            outputs=[output(f"{name}.biased", first.result.dtype, packed_shape)],
            name=f"{name}.add",
        )
        result = insert_before(place, add)
    return result


def common_name(weights: Sequence[ir.Value], fallback: str) -> str:
    """The dotted place that all the weights' names share, such as model.layers.0.self_attn."""
    parts = [(weight.name or "").split(".") for weight in weights]
    shared: list[str] = []
    for words in zip(*parts, strict=False):
        if len(set(words)) > 1:
            break
        shared.append(words[0])
    return ".".join(shared) or fallback


def _packed_weight(graph: ir.Graph, parts: Sequence[ir.Value], name: str) -> ir.Value:
    value = add_weight(graph, packed(parts, name), name)
    origins = packed_origin(parts)
    if origins:
        write_origin(value, origins)
    return value
