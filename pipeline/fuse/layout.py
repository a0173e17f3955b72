"""Where the elements of a tensor go through reshapes and transpositions, followed on numbered elements.

Symbolic sizes become different primes, so an arrangement that comes out right does so for every size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .matching import dims, integer_attribute, integers

Numbered = npt.NDArray[np.int64]
"""A tensor whose elements are their own numbers in the tensor that was started from."""

_MOST = 1 << 24
"""Elements that are numbered at most; tensors with more are not followed."""
_PRIMES = (7, 11, 13, 17, 19, 23)
_LAYOUT_ONLY = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


class Sizes:
    """Concrete sizes for symbolic ones, the same for the same name."""

    def __init__(self) -> None:
        self._names: dict[str, int] = {}

    def concrete(self, shape: Sequence[int | str]) -> tuple[int, ...] | None:
        """`shape` with numbers for names; None when it has more names than there are primes."""
        result = []
        for size in shape:
            if isinstance(size, str):
                if size not in self._names and len(self._names) == len(_PRIMES):
                    return None
                size = self._names.setdefault(size, _PRIMES[len(self._names) % len(_PRIMES)])
            result.append(size)
        return tuple(result)


def numbered(value: ir.Value, sizes: Sizes) -> Numbered | None:
    """`value` with its elements numbered in order; None when its shape is not known or it is too large."""
    shape = dims(value)
    concrete = None if shape is None else sizes.concrete(shape)
    if concrete is None or math.prod(concrete) > _MOST:
        return None
    return np.arange(math.prod(concrete), dtype=np.int64).reshape(concrete)


def moves_only(node: ir.Node | None) -> bool:
    """Whether a node only arranges the elements of its first input anew."""
    if node is None or node.domain != "":
        return False
    return node.op_type in _LAYOUT_ONLY or _takes_unit_axis(node)


def climb(value: ir.Value) -> tuple[ir.Value, list[ir.Node]]:
    """The value that `value` is an arrangement of, and the nodes between, first to last."""
    nodes: list[ir.Node] = []
    while moves_only(value.producer()):
        node = value.producer()
        assert node is not None
        source = node.inputs[0]
        assert source is not None
        nodes.append(node)
        value = source
    return value, nodes[::-1]


def follow(elements: Numbered, nodes: Sequence[ir.Node], sizes: Sizes) -> Numbered | None:
    """`elements` after the nodes of `climb`; None when a shape on the way is not known."""
    for node in nodes:
        moved = _move(elements, node, sizes)
        if moved is None:
            return None
        elements = moved
    return elements


def _move(elements: Numbered, node: ir.Node, sizes: Sizes) -> Numbered | None:
    if node.op_type == "Identity":
        return elements
    if node.op_type == "Transpose":
        attribute = node.attributes.get("perm")
        return elements.transpose(None if attribute is None else attribute.as_ints())
    if node.op_type == "Gather":
        return np.asarray(elements.take(0, axis=integer_attribute(node, "axis", 0)))
    target: Sequence[int] | None = None
    if node.op_type == "Reshape":
        target = _reshape_target(elements, node)
    if target is None:
        shape = dims(node.outputs[0])
        target = None if shape is None else sizes.concrete(shape)
    if target is None or (-1 not in target and np.prod(target) != elements.size):
        return None
    return elements.reshape(target)


def _reshape_target(elements: Numbered, node: ir.Node) -> list[int] | None:
    """The shape that a Reshape with a constant shape asks for."""
    asked = integers(node.inputs[1])
    if asked is None:
        return None
    if integer_attribute(node, "allowzero", 0):
        return list(asked)
    return [elements.shape[axis] if size == 0 else size for axis, size in enumerate(asked)]


def _takes_unit_axis(node: ir.Node) -> bool:
    """Whether a Gather takes element 0 of an axis of size 1, and so only drops the axis."""
    if node.op_type != "Gather" or node.inputs[1] is None:
        return False
    index = integers(node.inputs[1])
    data = node.inputs[0]
    if index != (0,) or node.inputs[1].shape is None or len(node.inputs[1].shape) != 0:
        return False
    shape = None if data is None or data.shape is None else data.shape
    return shape is not None and shape[integer_attribute(node, "axis", 0)] == 1
