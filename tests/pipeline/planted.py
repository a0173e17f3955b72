"""Faults for parity tests: one node of a graph made wrong, drawn by a seed.

`python -m tests.pipeline.planted GRAPH DAMAGED KIND SEED` writes such a graph, beside the weights of GRAPH.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from pipeline.graph import load_graph, save_graph

SWAPS = {
    "Add": "Sub",
    "Sub": "Add",
    "Mul": "Add",
    "Div": "Mul",
    "Cos": "Sin",
    "Sin": "Cos",
    "Sigmoid": "Tanh",
    "Tanh": "Sigmoid",
    "Erf": "Tanh",
    "Sqrt": "Abs",
    "Reciprocal": "Sqrt",
    "Softmax": "LogSoftmax",
    "Neg": "Abs",
    "Gelu": "Relu",
    "Relu": "Gelu",
    "ReduceMean": "ReduceMax",
    "RMSNormalization": "LayerNormalization",
    "Swish": "Tanh",
}
"""Operators that take the same inputs and give other numbers."""

KINDS = ("weight", "operator", "constant")
SWITCHES = {"do_rotary": (1, 0), "right_window": (-1, 0)}
"""Attributes that make an operator another one, with the value to look for and the one to put there: no rotation, no
later tokens."""
ATTRIBUTES = {"epsilon": 3e4, "scale": 1.7}
"""Attributes that decide numbers, and by how much they are changed."""
LARGEST_CONSTANT = 16


class Fault(NamedTuple):
    """What was done to which node (by its first output: names of nodes may be empty)."""

    output: str
    operator: str
    kind: str


def plant(model: ir.Model, kind: str, seed: int) -> Fault:
    """Makes one node of `model` wrong, in place; `seed` decides which of those that the kind can be done to."""
    draw = random.Random(seed)
    places = [node for node in model.graph if _possible(node, kind)]
    node = draw.choice(places)
    operator = node.op_type
    if kind == "operator":
        node.op_type = SWAPS.get(node.op_type, node.op_type)
        for name, (before, after) in SWITCHES.items():
            if _has(node, name, before):
                node.attributes[name] = ir.AttrInt64(name, after)
        if node.op_type in ("Tanh", "Relu", "Gelu"):
            node.attributes.clear()
    elif kind == "weight":
        place = draw.choice(_numbers(node, lambda size: size > LARGEST_CONSTANT))
        array = _array(node, place)
        rows = array.reshape(-1, array.shape[-1])
        # A column of the last axis: a feature of a matrix or embedding, an element of a norm's weight.
        rows[:, draw.randrange(rows.shape[1])] *= -1.5
        _give(model, node, place, array)
    else:
        names = [name for name in ATTRIBUTES if name in node.attributes]
        if names:
            name = draw.choice(names)
            value = node.attributes[name].as_float() or 0.1
            node.attributes[name] = ir.AttrFloat32(name, value * ATTRIBUTES[name])
        else:
            place = draw.choice(_numbers(node, lambda size: size <= LARGEST_CONSTANT))
            with np.errstate(over="ignore"):  # the smallest float of a mask
                _give(model, node, place, _array(node, place) * np.float32(1.7) + np.float32(0.01))
    return Fault(node.outputs[0].name or "", operator, kind)


def _possible(node: ir.Node, kind: str) -> bool:
    if kind == "operator":
        not_square = node.op_type != "Mul" or node.inputs[0] is not node.inputs[1]
        switch = any(_has(node, name, before) for name, (before, _) in SWITCHES.items())
        return switch or (node.domain == "" and node.op_type in SWAPS and not_square)
    if kind == "weight":
        return bool(_numbers(node, lambda size: size > LARGEST_CONSTANT))
    known = bool(set(ATTRIBUTES) & set(node.attributes))
    return known or bool(_numbers(node, lambda size: size <= LARGEST_CONSTANT))


def _has(node: ir.Node, name: str, value: int) -> bool:
    return name in node.attributes and node.attributes[name].as_int() == value


def _numbers(node: ir.Node, fits: object) -> list[int]:
    """Places of inputs that are constants with a fraction, of a fitting size."""
    return [
        place
        for place, value in enumerate(node.inputs)
        if value is not None
        and value.const_value is not None
        and value.dtype == ir.DataType.FLOAT
        and fits(value.const_value.size)  # type: ignore[operator]
    ]


def _array(node: ir.Node, place: int) -> np.ndarray:
    value = node.inputs[place]
    assert value is not None
    assert value.const_value is not None
    return np.array(value.const_value.numpy(), np.float32)


def _give(model: ir.Model, node: ir.Node, place: int, array: np.ndarray) -> None:
    """The node gets a constant of its own: another node may share the one that it had."""
    name = f"planted.{node.outputs[0].name}.{place}"
    value = ir.Value(
        name=name,
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(array.shape),
        const_value=ir.tensor(np.ascontiguousarray(array, np.float32), name=name),
    )
    model.graph.register_initializer(value)
    node.replace_input_with(place, value)


def main(graph: str, damaged: str, kind: str, seed: str) -> None:
    """Writes the damaged graph and says what was done."""
    model = load_graph(Path(graph))
    fault = plant(model, kind, int(seed))
    save_graph(model, Path(damaged))
    print(f"{kind} of {fault.operator} that makes {fault.output} changed: {damaged}")


if __name__ == "__main__":
    main(*sys.argv[1:])
