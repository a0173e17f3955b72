"""What an attention mask of padded texts says: which keys a query sees, and what is added to its scores.

A mask is a sum of what depends on the padding and what does not (a bias by positions). What the first part shows is
found by computing it for example texts, so that its spelling does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .evaluation import evaluate
from .matching import dims, made_by

WIDEST = 1024
"""Tokens of the example text that windows are found with; wider ones are not told from none."""
EXAMPLE = (7, 3, 1, 5)
"""Tokens of example texts."""
_HIDDEN = -1e30

Array = npt.NDArray[Any]


class Unpackable(Exception):
    """Why a graph cannot compute its texts packed."""


class Visible(NamedTuple):
    """Keys that a query sees, as distances in tokens to both sides (-1: all), and the bias of its scores."""

    left: int
    right: int
    bias: ir.Value | None  # [1, 1 or heads, length, length]


class Texts:
    """The padded texts that a graph takes: input `attention_mask` [batch, length], and others of the same shape."""

    def __init__(self, model: ir.Model) -> None:
        """Raises Unpackable when the graph has no such input."""
        self.model = model
        self.graph = model.graph
        self.mask = next((value for value in self.graph.inputs if value.name == "attention_mask"), None)
        shape = dims(self.mask)
        if (
            self.mask is None
            or shape is None
            or len(shape) != 2
            or not all(isinstance(x, str) for x in shape)
        ):
            raise Unpackable("the graph takes no attention_mask [batch, length]")
        if self.mask.dtype != ir.DataType.INT64:
            raise Unpackable(f"attention_mask is {self.mask.dtype}, not INT64")
        self.batch, self.length = shape

    def reads_mask(self, value: ir.Value) -> bool:
        """Whether the elements of `value` depend on those of the mask; shapes do not count."""
        return (
            any(self.mask in node.inputs for node in self.ancestors(value, shapes=False))
            or value is self.mask
        )

    def ancestors(self, value: ir.Value, shapes: bool = True) -> list[ir.Node]:
        """The nodes that compute `value`, in the graph's order; without `shapes`, those whose elements it needs."""
        found: set[ir.Node] = set()
        waiting = [value]
        while waiting:
            node = waiting.pop().producer()
            if node is None or node in found or (node.op_type == "Shape" and not shapes):
                continue
            found.add(node)
            waiting += [given for given in node.inputs if given is not None]
        return [node for node in self.graph if node in found]

    def computed(self, value: ir.Value, lengths: Sequence[int]) -> Array:
        """`value` for texts of so many tokens, whose ids are 0. Raises Unpackable when it cannot be computed."""
        mask = (np.arange(max(lengths))[None, :] < np.asarray(lengths)[:, None]).astype(np.int64)
        nodes = self.ancestors(value)
        known: dict[str, Array] = {}
        for node in nodes:
            for given in node.inputs:
                if given is None or not given.name:
                    continue
                if given.const_value is not None:
                    known[given.name] = given.const_value.numpy()
                elif given.is_graph_input():
                    known[given.name] = mask if given is self.mask else np.zeros_like(mask)
        try:
            (result,) = evaluate(nodes, self.model.opset_imports, known, [value])
        except (
            Exception
        ) as error:  # the evaluator fails in its own ways, on operators that it does not know too
            raise Unpackable(f"{value.name} cannot be computed alone: {error}") from error
        return result

    def is_padding(self, value: ir.Value, at_tokens: float | bool, at_padding: float | bool) -> bool:
        """Whether `value` [batch, length, ...] is one number at tokens and another one at padding."""
        if not self.reads_mask(value):
            return False
        live = np.arange(max(EXAMPLE))[None, :] < np.asarray(EXAMPLE)[:, None]
        found = self.computed(value, EXAMPLE)
        found = found.reshape(*live.shape, -1)
        return bool((found[live] == at_tokens).all() and (found[~live] == at_padding).all())


def visible(texts: Texts, mask: ir.Value | None) -> Visible:
    """What the mask operand of an Attention says. Raises Unpackable when it is not understood."""
    if mask is None:
        raise Unpackable("attention without a mask sees padding")
    mask = unrepeated(mask)
    bias: ir.Value | None = None
    add = made_by(mask, "Add")
    if add is not None:
        for first, second in (add.inputs, tuple(reversed(add.inputs))):
            if (
                first is not None
                and second is not None
                and not texts.reads_mask(first)
                and texts.reads_mask(second)
            ):
                bias, mask = unrepeated(first), unrepeated(second)
                break
    if bias is not None:
        shape = dims(bias)
        if shape is None or len(shape) != 4 or shape[0] != 1 or shape[2:] != (texts.length, texts.length):
            raise Unpackable(
                f"the bias of attention scores has shape {shape}, not [1, heads, length, length]"
            )
    return Visible(*_window(texts, mask), bias)


def _window(texts: Texts, mask: ir.Value) -> tuple[int, int]:
    """The window of a mask [batch, 1, 1 or length, length], which hides padding too."""
    shape = dims(mask)
    if shape is None or len(shape) != 4 or shape[1] != 1 or shape[3] != texts.length:
        raise Unpackable(f"the mask of attention has shape {shape}, not [batch, 1, 1 or length, length]")
    left = right = -1
    if shape[2] != 1:
        left, right = _band(_seen(texts, mask, (WIDEST,))[0])
        if left < 0 and right < 0:
            raise Unpackable(f"the mask of attention shows {WIDEST} tokens; it may be a wider window")
    lengths = np.asarray(EXAMPLE)
    places = np.arange(max(EXAMPLE))
    wanted = _banded(len(places), left, right)[None] & (places[None, None, :] < lengths[:, None, None])
    live = np.broadcast_to(places[None, :, None] < lengths[:, None, None], wanted.shape)
    found = np.broadcast_to(_seen(texts, mask, EXAMPLE), wanted.shape)
    if not (found == wanted)[live].all():
        raise Unpackable(
            "the mask of attention shows other keys than the tokens of a text, or of a window of it"
        )
    return left, right


def _seen(texts: Texts, mask: ir.Value, lengths: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Which keys the mask shows [texts, 1 or queries, keys]. Raises Unpackable when it adds other numbers too."""
    found = texts.computed(mask, lengths)[:, 0]
    shown: npt.NDArray[np.bool_] = found == 0
    if not (shown | (found < _HIDDEN)).all():
        raise Unpackable("the mask of attention adds other numbers than 0 and the lowest")
    return shown


def _band(shown: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """The distances to both sides that a square of visible keys shows; -1: all."""
    size = len(shown)
    queries, keys = np.nonzero(shown)
    left, right = int((queries - keys).max(initial=0)), int((keys - queries).max(initial=0))
    left, right = (-1 if reach >= size - 1 else reach for reach in (left, right))
    if not (shown == _banded(size, left, right)).all():
        raise Unpackable("the mask of attention is no window")
    return left, right


def _banded(size: int, left: int, right: int) -> npt.NDArray[np.bool_]:
    ahead = np.arange(size)[None, :] - np.arange(size)[:, None]
    band: npt.NDArray[np.bool_] = np.ones((size, size), np.bool_)
    if left >= 0:
        band &= ahead >= -left
    if right >= 0:
        band &= ahead <= right
    return band


def unrepeated(value: ir.Value) -> ir.Value:
    """x, where `value` is x repeated along axes of size 1."""
    expand = made_by(value, "Expand")
    while expand is not None and expand.inputs[0] is not None:
        inner = expand.inputs[0]
        before, after = dims(inner), dims(value)
        if before is None or after is None or len(before) != len(after):
            break
        value, expand = inner, made_by(inner, "Expand")
    return value
