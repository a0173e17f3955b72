"""What TensorRT says, and what a user is told when an engine does not load."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

from .built_engine import BuiltEngine
from .errors import BadInput
from .logs import log_event

KEPT = 8
"""Messages that are remembered until somebody asks for them."""


def logger_of(trt: Any) -> Any:
    """A logger for the package `trt`, which keeps its last errors for `said`; warnings go to the log."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.problems: deque[str] = deque(maxlen=KEPT)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.problems.append(message)
            elif severity == trt.ILogger.WARNING:
                log_event(logging.WARNING, "TensorRT warns", message=message)

        def said(self) -> str:
            words = "; ".join(self.problems)
            self.problems.clear()
            return words

    return Logger()


def not_loaded(built: BuiltEngine, version: str, capability: tuple[int, int], said: str) -> BadInput:
    """The error for an engine that this `version` of the package refuses on a GPU of this compute capability."""
    here = ".".join(map(str, capability))
    made_for = " and ".join(built.compute_capabilities) or "any that it knows"
    error = (
        f"{built.title} {version} on a GPU of compute capability {here} does not load {built.path}, which was built by "
        f"{built.title} {built.version} for compute capability {made_for}: {said or 'it does not say why'}. "
    )
    if "plugin" in said.lower():
        known = f"it has {', '.join(map(str, built.plugins))}" if built.plugins else "it has none"
        return BadInput(
            f"{error}The engine holds plugins, which come from a library in C++ beside it ({known}): "
            "`make plugins TENSORRT_INCLUDE=...`, then build the engine with it (--plugin-library). Plugins in "
            "Python, which an engine may be built with for want of that, are not known here"
        )
    if version != built.version:
        return BadInput(f"{error}Install {built.requirement}, or build the engine again with {version}")
    if built.compute_capabilities and here not in built.compute_capabilities:
        return BadInput(f"{error}Build it for this GPU: --compute-capability {here}, or on this machine")
    return BadInput(f"{error}Build it again")
