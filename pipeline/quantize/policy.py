"""Where each target wants quantization: declared here, written by `write.py`, checked by `verify.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from calibration.schemes import Quantized, Scheme
from model_repo.runtime.errors import BadInput
from plugins.column_blocks import storable_scales

from .precisions import LayerSchemes

_SYMMETRIC = Scheme("int8")


@dataclass(frozen=True)
class Policy:
    """A target's rules.

    Inputs of products (MatMul and Gemm with a constant matrix) are quantized, once for all products that read the
    same tensor; sums of residual branches, attention and normalization stay in floating point. Both operands of a
    product are quantized, or its weight alone where the precision says so.

    Convolutions (precision int8) have int8 weights with a scale an output channel; `convolved` is the scheme of what
    they read, with one calibrated scale, rounded once for all that read the same tensor. What they give is rounded
    only where the next one reads it.

    `smallest`: elements of a matrix below which it does not pay. `tables`: whether rows of Gather are quantized too;
    those that share their weight with a product always are. `static_only`: activations have one scale, fixed
    beforehand. `zero_points`: whether schemes may be asymmetric; `refusal` says why not. `refused`: precisions
    that the target does not take, with the reason. `signed_scales`: whether scales of int4 weights may be negative.
    `experts`: whether matrices of mixtures of experts are quantized.
    `half_scales`: whether scales of blocks have float16's 11 bits, as the target's packed weights keep them; they are
    rounded here, so that the quantized graph and the engine have the same.
    """

    target: str
    smallest: int = 4096
    tables: bool = True
    static_only: bool = False
    zero_points: bool = True
    refusal: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    convolved: Scheme = _SYMMETRIC
    signed_scales: bool = False
    experts: bool = False
    half_scales: bool = False

    def stored(self, made: Quantized) -> Quantized:
        """A weight [out, in] with the scales that the target keeps."""
        if not self.half_scales or made.scheme.granularity != "block" or made.scales.ndim != 2:
            return made
        return replace(made, scales=storable_scales(made.scales))

    def adapted(self, layer: LayerSchemes) -> LayerSchemes:
        """`layer` as this target runs it. Raises BadInput for schemes that it cannot."""
        weight, scheme = layer.weight, layer.activation
        if self.signed_scales and weight is not None and weight.format == "int4" and weight.symmetric:
            layer = replace(layer, weight=replace(weight, signed_scales=True))
        if weight is not None and not weight.symmetric and not self.zero_points:
            raise BadInput(f"target {self.target!r} takes no asymmetric weights ({weight}): {self.refusal}")
        if scheme is None:
            return layer
        if not scheme.symmetric and not self.zero_points:
            raise BadInput(
                f"target {self.target!r} takes no asymmetric activations ({scheme}): {self.refusal}"
            )
        if self.static_only and scheme.granularity == "token":
            return replace(layer, activation=Scheme(scheme.format, "tensor", symmetric=scheme.symmetric))
        return layer


_TENSORRT = Policy(
    "tensorrt",
    tables=False,
    static_only=True,
    zero_points=False,
    refusal="its Q/DQ nodes take no zero point other than 0; give a symmetric scheme",
    refused={"int4-asymmetric": "its DequantizeLinear takes no zero point other than 0; take int4"},
)
_NO_HALVES = "ONNX Runtime has no 16-bit products on a CPU and would convert to float32 and back; take int8"

POLICIES: Mapping[str, Policy] = {
    "onnxruntime": Policy(
        "onnxruntime",
        refused={"fp16": _NO_HALVES, "bf16": _NO_HALVES},
        convolved=Scheme(
            "uint8", symmetric=False
        ),  # after a ReLU zero is the lowest code, and none is unused
        signed_scales=True,
        experts=True,
        half_scales=True,
    ),
    "onnxruntime-cuda": Policy("onnxruntime-cuda"),
    "tensorrt": _TENSORRT,
    "tensorrt-rtx": replace(_TENSORRT, target="tensorrt-rtx"),
}


def policy_of(target: str, precision: str) -> Policy:
    """The rules of a target. Raises BadInput for a precision that it refuses, with the reason."""
    policy = POLICIES.get(target)
    if policy is None:
        raise BadInput(f"target {target!r} has no rules for quantization; those with: {', '.join(POLICIES)}")
    if precision in policy.refused:
        raise BadInput(
            f"target {target!r} does not take precision {precision!r}: {policy.refused[precision]}"
        )
    return policy
