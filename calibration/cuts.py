"""A graph cut into blocks that are computed one after the other, by what depends on what.

A block begins after the tensor that an attention operator's projections read: in a decoder or encoder that is one
layer a block, whatever the architecture. A graph without attention is cut at every tensor that linear layers read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from .linear_layers import LinearLayer, groups, linear_layers
from .slices import used


@dataclass(frozen=True, eq=False)
class Stage:
    """Nodes that must run before some linear layers; all of `layers` read one tensor, `inputs`."""

    nodes: tuple[ir.Node, ...]
    inputs: ir.Value
    layers: tuple[LinearLayer, ...]


@dataclass(frozen=True, eq=False)
class Block:
    """Stages in the order of computation."""

    number: int
    stages: tuple[Stage, ...]

    @property
    def layers(self) -> tuple[LinearLayer, ...]:
        """All linear layers of the block."""
        return tuple(layer for stage in self.stages for layer in stage.layers)


def blocks(model: ir.Model, wanted: Sequence[LinearLayer] | None = None) -> list[Block]:
    """All blocks up to the last of the layers `wanted` (default: all linear layers).

    Each node up to there is in exactly one stage, the products of a stage's own layers in a later one.
    """
    layers = linear_layers(model) if wanted is None else list(wanted)
    order = list(model.graph)
    place = {node: number for number, node in enumerate(order)}
    starts = _starts(model)
    stages: list[list[Stage]] = []
    begin = 0
    for group in groups(sorted(layers, key=lambda layer: place[layer.node])):
        inputs = group[0].inputs
        producer = inputs.producer()
        end = max(begin, 0 if producer is None else place[producer] + 1)
        if not stages or inputs in starts:
            stages.append([])
        stages[-1].append(Stage(tuple(order[begin:end]), inputs, tuple(group)))
        begin = end
    return [Block(number, tuple(found)) for number, found in enumerate(stages)]


def crossing(model: ir.Model, nodes: Sequence[ir.Node]) -> set[ir.Value]:
    """Values made by `nodes`, the first of the graph, that the rest of the graph reads."""
    done = set(nodes)
    made = {value for node in nodes for value in node.outputs}
    rest = {value for node in model.graph if node not in done for value in used(node)}
    return (rest | set(model.graph.outputs)) & made


def _starts(model: ir.Model) -> set[ir.Value]:
    """Tensors with which a block begins."""
    layers = linear_layers(model)
    attention = [node for node in model.graph if "Attention" in node.op_type]
    if not attention:
        return {layer.inputs for layer in layers}
    products = {layer.node: layer for layer in layers}
    found: set[ir.Value] = set()
    for node in attention:
        seen: set[ir.Value] = set()
        waiting = [value for value in node.inputs[:3] if value is not None]
        while waiting:
            value = waiting.pop()
            producer = value.producer()
            if value in seen or producer is None:
                continue
            seen.add(value)
            if producer in products:
                found.add(products[producer].inputs)
            else:
                waiting += [item for item in producer.inputs if item is not None]
    return found
