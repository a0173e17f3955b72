"""`slipway compile`: stage 4."""

from __future__ import annotations

from .stage import stage_command

command = stage_command(
    "compile",
    "The graph lowered in DIR becomes an engine: engine.onnx and what the runtime needs beside it.",
    "quantize",
    "target",
)
