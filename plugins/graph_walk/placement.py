"""What of a graph is computed where: values that decide shapes on the CPU, what only weights decide once, at loading.

Nothing may wait for the device in the middle of a step, and a shape that a device computes would have to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from model_repo.runtime.errors import BadInput

from .description import Graph, Node

SHAPE_INPUTS: Mapping[str, frozenset[int]] = {
    "Clip": frozenset({1, 2}),
    "ConstantOfShape": frozenset({0}),
    "Expand": frozenset({1}),
    "Range": frozenset({0, 1, 2}),
    "ReduceMax": frozenset({1}),
    "ReduceMean": frozenset({1}),
    "ReduceSum": frozenset({1}),
    "Reshape": frozenset({1}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Split": frozenset({1}),
    "Squeeze": frozenset({1}),
    "Unsqueeze": frozenset({1}),
}
"""Inputs of operators whose numbers, and not only their shapes, decide the shape of what comes out; and bounds."""

ON_HOST = frozenset({"Shape", "ConstantOfShape", "Range"})
"""Operators whose results lie on the CPU."""


def values_on_host(graph: Graph) -> frozenset[str]:
    """Values that lie on the CPU. Raises BadInput where an input of the graph decides a shape by its numbers."""
    ends = {end.name for end in graph.inputs}
    wanted: set[str] = set()
    found: set[str] = set()
    for node in reversed(graph.nodes):
        on_host = node.operator in ON_HOST or any(name in wanted for name in node.outputs)
        if on_host:
            found.update(node.outputs)
        for place, name in enumerate(node.inputs):
            decides = node.domain == "" and place in SHAPE_INPUTS.get(node.operator, ())
            if decides or (on_host and node.operator not in ON_HOST):
                if name in ends:
                    raise BadInput(
                        f"{node.words} makes a shape of the numbers of input {name!r}, which is not walked"
                    )
                wanted.add(name)
    return frozenset(found | (wanted - {""}))


def foldable(graph: Graph) -> list[Node]:
    """Nodes that weights alone decide, in order; they are computed once."""
    known = set(graph.weights) | {""}
    nodes = []
    for node in graph.nodes:
        if node.domain == "" and node.inputs and all(name in known for name in node.inputs):
            nodes.append(node)
            known.update(node.outputs)
    return nodes


def last_uses(nodes: Sequence[Node], kept: frozenset[str]) -> list[tuple[str, ...]]:
    """Of each node the values that nothing needs after it, its own among them; `kept` are not counted."""
    seen: set[str] = set(kept) | {""}
    uses: list[tuple[str, ...]] = []
    for node in reversed(nodes):
        names = [name for name in dict.fromkeys((*node.inputs, *node.outputs)) if name not in seen]
        seen.update(names)
        uses.append(tuple(names))
    return uses[::-1]
