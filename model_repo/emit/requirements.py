"""Packages that a repository's engine models need, by the target of the engine."""

from __future__ import annotations

from ..runtime.manifest import Manifest

_PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime", "1.22"),
    "onnxruntime-cuda": ("onnxruntime-gpu", "onnxruntime", "1.31"),
    "tensorrt": ("tensorrt", "tensorrt", "11.4"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt_rtx", "1.7"),
}
"""The distribution that runs engines, the one whose version the manifest has, and the release without that."""

CUDA_PYTHON = "cuda-python>=13.0"
"""What speaks to the driver where an engine of TensorRT's runs."""


def engine_requirements(manifest: Manifest) -> tuple[str, ...]:
    """Lines of requirements.txt for what runs the manifest's engine: of the release that built it, or newer.

    An engine may hold what older releases do not know.
    """
    assert manifest.engine is not None, "the caller read it"
    package, known_as, least = _PACKAGES[manifest.engine.target]
    release = manifest.versions.get(known_as, least).split(".")
    lines = (f"{package}>={release[0]}.{release[1]}",)
    return (*lines, CUDA_PYTHON) if manifest.engine.target.startswith("tensorrt") else lines


def engine_gpus(manifest: Manifest) -> tuple[int, ...]:
    """The GPUs of the instance group of a model that runs the engine: the first one, or none."""
    assert manifest.engine is not None, "the caller read it"
    return () if manifest.engine.target == "onnxruntime" else (0,)
