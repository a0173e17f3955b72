"""Which targets' engines this runtime executes."""

from __future__ import annotations

from pathlib import Path

from .contract import EngineSpec
from .errors import BadInput

EXECUTED = ("onnxruntime",)


def check_target(folder: Path, spec: EngineSpec) -> None:
    """Raises BadInput for the engine in `folder` when nothing here executes it."""
    if spec.target not in EXECUTED:
        raise BadInput(
            f"{folder} holds an engine of target {spec.target!r}, which this version builds and does not execute; "
            f"build for target {', '.join(map(repr, EXECUTED))}"
        )
