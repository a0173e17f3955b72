"""A residual sum and the RMSNormalization of it become one slipway::SkipRMSNormalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from plugins.schemas import SKIP_RMS_NORMALIZATION, OperatorSchema

from .matching import dims, normalizes_last_axis
from .skip_norm import SkipNorm


class SkipRmsNorm(SkipNorm):
    """Sums of two values of one shape; a sum that broadcasts (a bias) is left alone."""

    name: ClassVar[str] = "skip_rms_norm"
    normalization: ClassVar[str] = "RMSNormalization"
    fused: ClassVar[OperatorSchema] = SKIP_RMS_NORMALIZATION

    def inputs(self, norm: ir.Node, add: ir.Node) -> Sequence[ir.Value | None] | str:
        """Summands and weight."""
        reason = _obstacle(norm, add)
        return reason if reason is not None else (add.inputs[0], add.inputs[1], norm.inputs[1])


def _obstacle(norm: ir.Node, add: ir.Node) -> str | None:
    """Why a normalization of a sum cannot become one node; None when it can."""
    first, second = dims(add.inputs[0]), dims(add.inputs[1])
    if first is None or first != second:
        return f"the summands have shapes {first} and {second}, not one and the same"
    if not normalizes_last_axis(norm, norm.outputs[0]):
        return "the normalization is not over the last axis"
    weight = norm.inputs[1]
    # The fused node stands where the sum stood, so its weight must exist there already.
    if weight is None or weight.producer() is not None:
        return "the normalization's weight is computed in the graph"
    return None
