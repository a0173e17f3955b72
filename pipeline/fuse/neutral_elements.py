"""Arithmetic and logic that changes nothing: x * 1, x + 0, x and true."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx_ir as ir

from pipeline.notes import ORIGIN

from .matching import constant, dims, replace
from .rule import Matches, Rule

_NEUTRAL = {"Mul": 1, "Div": 1, "Pow": 1, "Add": 0, "Sub": 0, "And": 1, "Or": 0}
_EITHER_SIDE = frozenset({"Mul", "Add", "And", "Or"})


class NeutralElements(Rule):
    """The constant may be on either side of what commutes; it must not widen the other operand."""

    name: ClassVar[str] = "neutral_elements"

    def rewrite(self, model: ir.Model) -> Matches:
        """Counts the nodes passed over. Zeros may change their sign."""
        count = 0
        for node in list(model.graph):
            neutral = _NEUTRAL.get(node.op_type) if node.domain == "" else None
            if neutral is None or len(node.inputs) != 2:
                continue
            first, second = node.inputs
            kept = first if _is(second, neutral) else None
            if kept is None and node.op_type in _EITHER_SIDE and _is(first, neutral):
                kept = second
            result = node.outputs[0]
            if kept is None or dims(kept) is None or dims(kept) != dims(result):
                continue
            if result.is_graph_output() and (kept.is_graph_input() or kept.is_graph_output()):
                continue
            replace(result, kept)
            count += 1
        return Matches(count)


def _is(value: ir.Value | None, number: int) -> bool:
    """Whether every element of a small constant is `number`. A parameter that happens to be (the weights of norms
    in fresh models are) stays: other rules look for it."""
    if value is not None and ORIGIN in value.metadata_props:
        return False
    array = constant(value)
    return array is not None and array.size > 0 and bool(np.all(array == array.dtype.type(number)))
