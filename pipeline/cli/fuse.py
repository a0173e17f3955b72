"""`slipway fuse`: stage 2."""

from __future__ import annotations

from .stage import stage_command

command = stage_command(
    "fuse", "The graph exported in DIR becomes fuse.onnx: fewer nodes, the same numbers.", "fuse"
)
