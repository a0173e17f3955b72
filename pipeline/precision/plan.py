"""Which nodes compute in 16 bit, which of their inputs and outputs are of that type, and what does not fit it.

Decided by the standard's own type constraints: an input is narrowed when the operator's schema allows the type
there (`stash_type` and the like keep what the standard computes in float32). Operators of other domains, casts
and nodes with graphs in them stay in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from pipeline.parity.distance import MASKING

Precision = Literal["fp16", "bf16"]

TYPES: Mapping[Precision, ir.DataType] = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
LARGEST: Mapping[Precision, float] = {
    "fp16": float(np.finfo(np.float16).max),
    "bf16": float(ml_dtypes.finfo(ml_dtypes.bfloat16).max),  # type: ignore[no-untyped-call]
}
_CONSTRAINTS: Mapping[Precision, str] = {"fp16": "tensor(float16)", "bf16": "tensor(bfloat16)"}


class Overflow(NamedTuple):
    """A constant that does not fit the type."""

    name: str
    elements: int
    largest: float


@dataclass(frozen=True)
class Plan:
    """`inputs`: places of each narrow node's inputs that are of the 16-bit type. `values`: what narrow nodes make
    in that type. `overflows`: constants too large for it, whose readers stay in float32."""

    precision: Precision
    inputs: Mapping[ir.Node, frozenset[int]]
    values: frozenset[ir.Value]
    overflows: tuple[Overflow, ...]


def plan(model: ir.Model, precision: Precision, keep: Collection[str] = ()) -> Plan:
    """What becomes 16 bit in `model`; nodes named in `keep` do not."""
    inputs: dict[ir.Node, frozenset[int]] = {}
    values: set[ir.Value] = set()
    overflows: dict[str, Overflow] = {}
    for node in model.graph:
        if node.name in keep:
            continue
        places, outputs = _narrowed(node, model.opset_imports.get("", 1), precision)
        too_large = [found for place in places if (found := _overflow(node.inputs[place], precision))]
        overflows.update({found.name: found for found in too_large})
        if (places or outputs) and not too_large:
            inputs[node] = places
            values.update(outputs)
    return Plan(precision, inputs, frozenset(values), tuple(overflows.values()))


def rounded(array: npt.NDArray[np.float32], precision: Precision) -> npt.NDArray[np.generic]:
    """`array` in the 16-bit type; the infinity of a mask becomes the largest number of the type."""
    limit = LARGEST[precision]
    masking = np.abs(array) >= MASKING
    bounded = np.where(masking & np.isfinite(array), np.clip(array, -limit, limit), array)
    narrow: npt.NDArray[np.generic] = bounded.astype(TYPES[precision].numpy())
    return narrow


def _narrowed(node: ir.Node, opset: int, precision: Precision) -> tuple[frozenset[int], tuple[ir.Value, ...]]:
    """Places of inputs, and outputs, that are of the 16-bit type when the node is narrow; none when it stays."""
    nested = any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for attribute in node.attributes.values()
    )
    if node.domain not in ("", "ai.onnx") or node.op_type == "Cast" or nested:
        return frozenset(), ()
    if node.op_type == "QuantizeLinear":
        # Scales stay in float32: with narrow ones TensorRT's products of codes give their sums in 16 bit.
        return frozenset({0}), ()
    if node.op_type == "DequantizeLinear":
        return (frozenset({1}) if _in_blocks(node) else frozenset()), tuple(node.outputs)
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return frozenset(), ()
    allowed = {
        constraint.type_param_str
        for constraint in schema.type_constraints
        if _CONSTRAINTS[precision] in constraint.allowed_type_strs
    }
    places = frozenset(
        place
        for place, value in enumerate(node.inputs)
        if value is not None
        and value.dtype == ir.DataType.FLOAT
        and _parameter(schema.inputs, place) in allowed
    )
    bound = {_parameter(schema.inputs, place) for place in places}
    outputs = tuple(
        value
        for place, value in enumerate(node.outputs)
        if value.name and value.dtype == ir.DataType.FLOAT and _parameter(schema.outputs, place) in bound
    )
    return places, outputs


def _in_blocks(node: ir.Node) -> bool:
    """Whether a DequantizeLinear has scales by blocks; builders take those in the type that they make only."""
    return bool(node.attributes.get_int("block_size", 0))


def _parameter(formal: object, place: int) -> str:
    """The type variable of the parameter at `place`; the last one may stand for many."""
    parameters = list(formal)  # type: ignore[call-overload]
    text: str = parameters[min(place, len(parameters) - 1)].type_str if parameters else ""
    return text


def _overflow(value: ir.Value | None, precision: Precision) -> Overflow | None:
    """What of a constant does not fit; masks are meant to be beyond everything, and so do."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    sizes = np.abs(value.const_value.numpy())
    beyond = np.isfinite(sizes) & (sizes > LARGEST[precision]) & (sizes < MASKING)
    if not beyond.any():
        return None
    return Overflow(value.name or "", int(beyond.sum()), float(sizes[beyond].max()))
