"""The nodes of quantization: codes of weights behind DequantizeLinear, and rounding of what is multiplied by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from calibration.schemes import Quantized, Scheme
from model_repo.runtime.errors import BadInput
from plugins.schemas import DOMAIN, FAKE_QUANTIZE_TOKENS


class Step(NamedTuple):
    """How codes of a tensor are read: (code - zero) * scale."""

    scale: float
    zero: int = 0


ActivationScale = Callable[[str, Scheme], Step]
"""A tensor's name and scheme to how its codes are read."""

_CODES: Mapping[str, tuple[ir.DataType, Any]] = {
    "int8": (ir.DataType.INT8, np.int8),
    "uint8": (ir.DataType.UINT8, np.uint8),
    "int4": (ir.DataType.INT4, ml_dtypes.int4),
    "e4m3": (ir.DataType.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
}


def dequantized(graph: ir.Graph, weight: ir.Value, made: Quantized, transposed: bool) -> ir.Value:
    """The weight's numbers as its codes give them, laid out as the weight was; notes go to the codes."""
    kind, stored = _CODES[made.scheme.format]
    codes, scales, axis = made.codes, made.scales, made.axis
    if transposed:
        codes, axis = codes.T, None if axis is None else 1 - axis
        scales = scales.T if made.scheme.granularity == "block" else scales
    name = weight.name or "weight"
    inputs = [
        constant(graph, f"{name}.codes", np.ascontiguousarray(codes).astype(stored), kind, weight),
        constant(graph, f"{name}.scale", np.ascontiguousarray(scales), ir.DataType.FLOAT, None),
    ]
    if made.zero_points is not None:
        zeros = made.zero_points.T if transposed and made.scheme.granularity == "block" else made.zero_points
        inputs.append(constant(graph, f"{name}.zero", np.ascontiguousarray(zeros).astype(stored), kind, None))
    attributes: dict[str, int] = {} if axis is None else {"axis": axis}
    if made.scheme.block is not None:
        attributes["block_size"] = made.scheme.block
    out = ir.Value(name=f"{name}.dequantized", type=weight.type, shape=weight.shape)
    node = ir.node("DequantizeLinear", inputs, attributes, outputs=[out], name=f"{name}.dequantize")
    graph.insert_before(graph[0], node)
    return out


def rounded(
    graph: ir.Graph, value: ir.Value, scheme: Scheme, scale_of: ActivationScale | None, before: ir.Node
) -> ir.Value:
    """What a product or convolution sees of `value`. Raises BadInput when a scale is needed and there are none."""
    if scheme.granularity == "token":
        out = ir.Value(name=f"{value.name}.quantized", type=value.type, shape=value.shape)
        node = ir.node(
            FAKE_QUANTIZE_TOKENS.name, [value], domain=DOMAIN, outputs=[out], name=f"{value.name}.quantize"
        )
        graph.insert_before(before, node)
        return out
    if scale_of is None:
        raise BadInput(f"{scheme} activations need calibrated scales; run `slipway calibrate` first")
    kind, stored = _CODES[scheme.format]
    step = scale_of(value.name or "", scheme)
    scale = constant(
        graph, f"{value.name}.scale", np.asarray(step.scale, np.float32), ir.DataType.FLOAT, None
    )
    zero = constant(graph, f"{value.name}.zero", np.asarray(step.zero, stored), kind, None)
    out = ir.Value(name=f"{value.name}.dequantized", type=value.type, shape=value.shape)
    codes = ir.Value(name=f"{value.name}.codes", type=ir.TensorType(kind), shape=value.shape)
    down = ir.node(
        "QuantizeLinear", [value, scale, zero], outputs=[codes], name=f"{value.name}.quantize_linear"
    )
    up = ir.node("DequantizeLinear", [codes, scale, zero], outputs=[out], name=f"{value.name}.dequantize")
    graph.insert_before(before, [down, up])
    return out


def constant(
    graph: ir.Graph, name: str, array: npt.NDArray[Any], kind: ir.DataType, origin: ir.Value | None
) -> ir.Value:
    """A new initializer; with the notes of `origin`, whose numbers it stands for."""
    value = ir.Value(
        name=name,
        type=ir.TensorType(kind),
        shape=ir.Shape(array.shape),
        const_value=ir.Tensor(array, dtype=kind, name=name),
        metadata_props={} if origin is None else dict(origin.metadata_props),
    )
    graph.register_initializer(value)
    return value
