"""A graph in float32, for telling what its 16-bit types do to it."""

from __future__ import annotations

import torch

from .description import End, Graph, Node


def widened(graph: Graph) -> Graph:
    """The graph with float32 in the place of float16 and bfloat16, pools too: what rounding does to it shows beside it.

    Weights keep the values that they were rounded to.
    """
    narrow = ("float16", "bfloat16")
    numbers = {10: 1, 16: 1}

    def wide(end: End) -> End:
        return End(end.name, "float32" if end.dtype in narrow else end.dtype, end.shape)

    def node(given: Node) -> Node:
        kinds = {"Cast": "to", "DequantizeLinear": "output_dtype"}
        name = kinds.get(given.operator)
        attributes = dict(given.attributes)
        if name in attributes:
            attributes[name] = numbers.get(attributes[name], attributes[name])
        return Node(given.operator, given.inputs, given.outputs, attributes, given.name, given.domain)

    weights = {
        name: tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        for name, tensor in graph.weights.items()
    }
    return Graph(
        tuple(map(node, graph.nodes)),
        tuple(map(wide, graph.inputs)),
        tuple(map(wide, graph.outputs)),
        weights,
    )
