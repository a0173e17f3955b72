"""`slipway lower`: stage 3."""

from __future__ import annotations

from .stage import stage_command

command = stage_command(
    "lower",
    "The graph fused in DIR becomes lower.<target>.onnx, in the target's operators.",
    "quantize",
    "target",
)
