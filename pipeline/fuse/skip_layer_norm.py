"""A residual sum and the LayerNormalization of it become one slipway::SkipLayerNormalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import onnx_ir as ir

from plugins.schemas import SKIP_LAYER_NORMALIZATION, OperatorSchema

from .matching import Dims, dims, is_weight, made_by, normalizes_last_axis, only_reader, other_input
from .skip_norm import SkipNorm


class _Sum(NamedTuple):
    """input + skip + bias: skip has the last axes of input."""

    input: ir.Value
    skip: ir.Value
    bias: ir.Value | None


class SkipLayerNorm(SkipNorm):
    """Sums of two values where one has the last axes of the other (a residual, or positions).

    The bias of a product that only the sum reads comes along.
    """

    name: ClassVar[str] = "skip_layer_norm"
    normalization: ClassVar[str] = "LayerNormalization"
    fused: ClassVar[OperatorSchema] = SKIP_LAYER_NORMALIZATION

    def inputs(self, norm: ir.Node, add: ir.Node) -> Sequence[ir.Value | None] | str:
        """Summands, weight, and the biases of the normalization and of the product where there are any."""
        found = _match(norm, add)
        if isinstance(found, str):
            return found
        bias = norm.inputs[2] if len(norm.inputs) > 2 else None
        inputs = [found.input, found.skip, norm.inputs[1], bias, found.bias]
        while inputs[-1] is None:
            inputs.pop()
        return inputs


def _match(norm: ir.Node, add: ir.Node) -> _Sum | str:
    """The sum that a normalization reads, or why the two cannot become one node."""
    first, second = add.inputs
    shape = dims(add.outputs[0])
    if first is None or second is None or shape is None:
        return "the shape of the sum is not known"
    if not normalizes_last_axis(norm, norm.outputs[0]):
        return "the normalization is not over the last axis"
    if any(value.uses() or value.is_graph_output() for value in norm.outputs[1:]):
        return "the mean or the deviation is read too"
    for value in norm.inputs[1:]:
        # The fused node stands where the sum stood, so its weights must exist there already.
        if value is not None and value.producer() is not None:
            return "the normalization's weight or bias is computed in the graph"
        if value is not None and dims(value) != shape[-1:]:
            return f"the normalization's weight has shape {dims(value)}, not one element for each of the last axis"
    for whole, other in ((first, second), (second, first)):
        found, given = dims(whole), _repeated(dims(other))
        if found != shape or not given or given != shape[len(shape) - len(given) :]:
            continue
        if len(given) == 1:
            return f"{other.name} is a bias, no residual"
        for biased, skip in ((whole, other), (other, whole)):
            if dims(biased) != shape:
                continue
            inner, bias = _biased(biased)
            if inner is not None:
                return _Sum(inner, skip, bias)
        return _Sum(whole, other, None)
    return f"the summands have shapes {dims(first)} and {dims(second)}, none the last axes of the other"


def _repeated(shape: Dims | None) -> Dims:
    """The axes that a summand has of its own: leading ones of size 1 repeat it, as absent ones do."""
    sizes = shape or ()
    while len(sizes) > 1 and sizes[0] == 1:
        sizes = sizes[1:]
    return sizes


def _biased(value: ir.Value) -> tuple[ir.Value | None, ir.Value | None]:
    """x and b, where `value` is x + b with a constant b [last axis] and only one node reads it."""
    add = made_by(value, "Add")
    if add is None or only_reader(value) is None:
        return None, None
    for bias in add.inputs:
        x = None if bias is None else other_input(add, bias)
        if (
            is_weight(bias)
            and dims(bias) == (dims(value) or ())[-1:]
            and x is not None
            and dims(x) == dims(value)
        ):
            return x, bias
    return None, None
