"""Where engines run: one module a target, one protocol."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from model_repo.runtime.errors import BadInput

from .base import BucketRule, Kind, Problem, Target, TargetDescriptor

__all__ = ["BucketRule", "Kind", "Problem", "Target", "TargetDescriptor", "get_target", "target_names"]


def _onnxruntime() -> Target:
    from .onnxruntime import OnnxRuntimeTarget

    return OnnxRuntimeTarget()


_TARGETS: dict[str, Callable[[], Target]] = {"onnxruntime": _onnxruntime}


def target_names() -> tuple[str, ...]:
    """Names that `get_target` knows."""
    return tuple(_TARGETS)


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
