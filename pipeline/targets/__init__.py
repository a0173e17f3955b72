"""Where engines run: one module a target, one protocol."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from model_repo.runtime.errors import BadInput

from .base import BucketRule, Kind, Lowering, Problem, Target, TargetDescriptor

__all__ = [
    "BucketRule",
    "Kind",
    "Lowering",
    "Problem",
    "Target",
    "TargetDescriptor",
    "check_executed",
    "get_target",
    "target_names",
]


def _onnxruntime() -> Target:
    from .onnxruntime import OnnxRuntimeTarget

    return OnnxRuntimeTarget()


def _tensorrt_rtx() -> Target:
    from .tensorrt.target import RTX, TensorRtTarget

    return TensorRtTarget(RTX)


def _tensorrt() -> Target:
    from .tensorrt.target import TENSORRT, TensorRtTarget

    return TensorRtTarget(TENSORRT)


_TARGETS: dict[str, Callable[[], Target]] = {
    "onnxruntime": _onnxruntime,
    "tensorrt-rtx": _tensorrt_rtx,
    "tensorrt": _tensorrt,
}


def target_names() -> tuple[str, ...]:
    """Names that `get_target` knows."""
    return tuple(_TARGETS)


def check_executed(name: str) -> None:
    """Raises BadInput for a target whose engines are built and not executed, so that there is nothing to serve."""
    if not get_target(name).descriptor.executed:
        raise BadInput(
            f"engines of target {name!r}, which this version builds and nothing of it executes, cannot be served; "
            "build for target 'onnxruntime'"
        )


def get_target(name: str) -> Target:
    """The target called `name`. Raises BadInput with the targets that exist when there is none."""
    if name not in _TARGETS:
        near = difflib.get_close_matches(name, _TARGETS, n=1)
        suggestion = f"; did you mean {near[0]!r}?" if near else ""
        raise BadInput(
            f"target {name!r} is unknown{suggestion}; this version has: {', '.join(_TARGETS)}. "
            "Give one of these with --target"
        )
    return _TARGETS[name]()
