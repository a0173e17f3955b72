"""`slipway quantize DIR`."""

from __future__ import annotations

from .stage import stage_command

command = stage_command(
    "quantize",
    "Write weights of the fused graph in DIR as codes (--precision), and rounding where the target computes with "
    "codes.",
    "quantize",
)
