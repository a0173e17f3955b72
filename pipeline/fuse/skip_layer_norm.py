"""A residual sum and the LayerNormalization of it become one slipway::SkipLayerNormalization."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import onnx_ir as ir

from plugins.schemas import DOMAIN, SKIP_LAYER_NORMALIZATION, VERSION

from .matching import (
    Dims,
    dims,
    float_attribute,
    insert_before,
    is_weight,
    made_by,
    node_name,
    normalizes_last_axis,
    only_reader,
    other_input,
    output,
    replace,
)
from .rule import Matches, NearMiss, Rule


class _Sum(NamedTuple):
    """input + skip + bias: skip has the last axes of input."""

    input: ir.Value
    skip: ir.Value
    bias: ir.Value | None


class SkipLayerNorm(Rule):
    """The bias of a product that only the sum reads comes along; the sum stays as the second output."""

    name: ClassVar[str] = "skip_layer_norm"

    def rewrite(self, model: ir.Model) -> Matches:
        """Fuses sums of two values where one has the last axes of the other (a residual, or positions)."""
        count, missed = 0, []
        for norm in list(model.graph):
            if norm.op_type != "LayerNormalization" or norm.domain != "":
                continue
            add = made_by(norm.inputs[0], "Add")
            if add is None:
                continue
            found = _match(norm, add)
            if isinstance(found, str):
                missed.append(NearMiss(node_name(norm), found))
                continue
            total, normalized = add.outputs[0], norm.outputs[0]
            bias = norm.inputs[2] if len(norm.inputs) > 2 else None
            inputs = [found.input, found.skip, norm.inputs[1], bias, found.bias]
            while inputs[-1] is None:
                inputs.pop()
            fused = ir.node(
                SKIP_LAYER_NORMALIZATION.name,
                inputs,
                {"epsilon": float_attribute(norm, "epsilon", 1e-5)},
                domain=DOMAIN,
                outputs=[
                    output(f"{normalized.name}_skip", normalized.dtype, dims(normalized)),
                    output(f"{total.name}_skip", total.dtype, dims(total)),
                ],
                name=f"{node_name(norm)}_skip",
                metadata_props=dict(norm.metadata_props),
            )
            insert_before(add, fused)
            replace(normalized, fused.outputs[0])
            replace(total, fused.outputs[1])
            count += 1
        if count:
            model.opset_imports[DOMAIN] = VERSION
        return Matches(count, tuple(missed))


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
