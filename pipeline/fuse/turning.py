"""Rotary embedding as it is written in a graph: x * cos + rotate_half(x) * sin, head by head."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from .layout import Numbered, Sizes, climb, follow, numbered
from .matching import dims, integer_attribute, integers, made_by


class Turn(NamedTuple):
    """x * cos + rotate_half(x) * sin, as found in the graph, of rows [tokens, heads * head_dim]."""

    rows: ir.Value  # what is turned, before its heads were moved apart
    cos: ir.Value
    sin: ir.Value
    token_axis: int  # of x, counted from the end
    head_dim: int
    heads: int


def find_turn(node: ir.Node, index: int, heads_attribute: str) -> Turn | None:
    """The rotary embedding that makes input `index` of an attention node; None when there is none."""
    value = node.inputs[index]
    assert value is not None
    turned, below = climb(value)
    add = made_by(turned, "Add")
    if add is None:
        return None
    left, right = (made_by(operand, "Mul") for operand in add.inputs)
    if left is None or right is None:
        return None
    for straight, crossed in ((left, right), (right, left)):
        for x, cos in (straight.inputs, tuple(reversed(straight.inputs))):
            for rotated, sin in (crossed.inputs, tuple(reversed(crossed.inputs))):
                if x is not None and cos is not None and sin is not None and rotates_half(rotated, x):
                    return _laid_out(x, cos, sin, below, integer_attribute(node, heads_attribute, 0))
    return None


def _laid_out(x: ir.Value, cos: ir.Value, sin: ir.Value, below: list[ir.Node], heads: int) -> Turn | None:
    """The turn of `x`, when `x` is rows of heads and comes out as rows of heads after the nodes `below`."""
    shape = dims(x)
    rows, above = climb(x)
    sizes = Sizes()
    start = numbered(rows, sizes)
    if shape is None or not isinstance(shape[-1], int) or start is None:
        return None
    head_dim, width = shape[-1], heads * shape[-1]
    apart = follow(start, above, sizes)
    if apart is None or apart.size % width:
        return None
    token_axis = _token_axis(apart, head_dim, width)
    together = follow(apart, below, sizes)
    if token_axis is None or together is None or together.shape[-1] != width:
        return None
    if not np.array_equal(together.reshape(-1), np.arange(together.size)):
        return None
    return Turn(rows, cos, sin, token_axis, head_dim, heads)


def _token_axis(apart: Numbered, head_dim: int, width: int) -> int | None:
    """The axis of `apart`, from the end, that counts rows of `width`; its last one a head's elements."""
    if apart.shape[-1] != head_dim or not np.array_equal(
        apart % head_dim, np.broadcast_to(np.arange(head_dim), apart.shape)
    ):
        return None
    tokens = apart.size // width
    for axis in range(2, apart.ndim + 1):
        if apart.shape[-axis] == tokens:
            numbers = np.arange(tokens).reshape(-1, *[1] * (axis - 1))
            if np.array_equal(apart // width, np.broadcast_to(numbers, apart.shape)):
                return axis
    return None


def rotates_half(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether `value` is concat(-second half of x, first half of x) along the last axis."""
    concat = made_by(value, "Concat")
    shape = dims(x)
    if concat is None or shape is None or not isinstance(shape[-1], int) or len(concat.inputs) != 2:
        return False
    if integer_attribute(concat, "axis", 0) not in (-1, len(shape) - 1):
        return False
    negated = made_by(concat.inputs[0], "Neg")
    half = shape[-1] // 2
    return (
        negated is not None
        and _part(negated.inputs[0], x) == (half, shape[-1])
        and _part(concat.inputs[1], x) == (0, half)
    )


def _part(value: ir.Value | None, x: ir.Value) -> tuple[int, int] | None:
    """[start, end) of the last axis of `x` that `value` is a slice of."""
    shape = dims(x)
    assert shape is not None
    size = int(shape[-1])
    split = made_by(value, "Split")
    if (
        split is not None
        and split.inputs[0] is x
        and integer_attribute(split, "axis", 0) in (-1, len(shape) - 1)
    ):
        bounds = [0]
        for part in split.outputs:
            width = (dims(part) or (0,))[-1]
            bounds.append(bounds[-1] + (width if isinstance(width, int) else 0))
        place = list(split.outputs).index(value) if value is not None else 0
        return bounds[place], bounds[place + 1]
    node = made_by(value, "Slice")
    if node is None or node.inputs[0] is not x or len(node.inputs) < 4:
        return None
    starts, ends, axes = (integers(given) for given in node.inputs[1:4])
    steps = integers(node.inputs[4]) if len(node.inputs) > 4 else (1,)
    if starts is None or ends is None or axes not in ((-1,), (len(shape) - 1,)) or steps != (1,):
        return None
    start, end, _ = slice(starts[0], ends[0]).indices(size)
    return start, end
