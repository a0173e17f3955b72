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
    "check_on_cpu",
    "get_target",
    "target_names",
]


def _onnxruntime() -> Target:
    from .onnxruntime import OnnxRuntimeTarget

    return OnnxRuntimeTarget()


def _onnxruntime_cuda() -> Target:
    from .onnxruntime_cuda import OnnxRuntimeCudaTarget

    return OnnxRuntimeCudaTarget()


def _tensorrt_rtx() -> Target:
    from .tensorrt.target import RTX, TensorRtTarget

    return TensorRtTarget(RTX)


def _tensorrt() -> Target:
    from .tensorrt.target import TENSORRT, TensorRtTarget

    return TensorRtTarget(TENSORRT)


_TARGETS: dict[str, Callable[[], Target]] = {
    "onnxruntime": _onnxruntime,
    "onnxruntime-cuda": _onnxruntime_cuda,
    "tensorrt-rtx": _tensorrt_rtx,
    "tensorrt": _tensorrt,
}


def target_names() -> tuple[str, ...]:
    """Names that `get_target` knows."""
    return tuple(_TARGETS)


def check_on_cpu(name: str, what: str) -> None:
    """Raises BadInput for a target whose engines take a GPU; `what` is done on a CPU only."""
    if not get_target(name).descriptor.on_cpu:
        raise BadInput(
            f"{what} takes an engine that runs on a CPU; build for target 'onnxruntime', not {name!r}"
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
