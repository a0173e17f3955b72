"""What a machine needs to run a target's engines, told in one sentence before anything is loaded."""

from __future__ import annotations

import ctypes
from pathlib import Path

from .contract import EngineSpec
from .errors import BadInput

ON_CPU = ("onnxruntime",)
"""Targets whose engines run on any machine."""

ON_GPU = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
"""Targets whose engines take an NVIDIA GPU."""

DRIVER = "libcuda.so.1"


def check_machine(target: str, what: str, driver: str = DRIVER) -> None:
    """Raises BadInput where engines of `target` cannot run: no driver of a GPU, or a target that nobody runs.

    what: what is to be run, for the message. driver: the driver's library.
    """
    if target in ON_CPU:
        return
    if target not in ON_GPU:
        raise BadInput(
            f"{what} is of target {target!r}, which this version does not run; it has {', '.join((*ON_CPU, *ON_GPU))}"
        )
    try:
        ctypes.CDLL(driver)
    except OSError as error:
        raise BadInput(
            f"{what} is of target {target!r}, whose engines run on an NVIDIA GPU, and no driver is here ({error}); run "
            "it on a machine with a GPU and its driver, or build for target 'onnxruntime'"
        ) from error


def check_on_cpu(folder: Path, spec: EngineSpec, done: str) -> None:
    """Raises BadInput for the engine in `folder` when `done`, which is for engines on a CPU, cannot be done with it."""
    if spec.target not in ON_CPU:
        raise BadInput(
            f"{folder} holds an engine of target {spec.target!r}; engines are {done} on a CPU only: build for target "
            f"{' or '.join(map(repr, ON_CPU))}"
        )
