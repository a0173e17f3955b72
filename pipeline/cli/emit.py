"""`slipway emit`: stage 5."""

from __future__ import annotations

from .stage import stage_command

command = stage_command(
    "emit", "The engine compiled in DIR becomes DIR/repository, a Triton model repository.", "serve"
)
