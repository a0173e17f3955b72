"""The Python packages of TensorRT and TensorRT-RTX: the same names, imported only where an engine is built."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model_repo.runtime.errors import BadInput


@dataclass(frozen=True)
class Package:
    """A Python package of one of the two. `major`: of the versions that this code was written against."""

    module: str
    title: str
    major: int
    remedy: str


PACKAGES: Mapping[str, Package] = {
    "tensorrt": Package(
        "tensorrt", "TensorRT", 11, "pip install tensorrt, on a machine with a GPU and its driver"
    ),
    "tensorrt-rtx": Package(
        "tensorrt_rtx", "TensorRT-RTX", 1, "pip install tensorrt-rtx; no GPU is needed to build"
    ),
}
"""By the target's name."""


def load(target: str) -> Any:
    """The package's module. Raises BadInput when it does not load or is of another major version."""
    package = PACKAGES[target]
    try:
        module = importlib.import_module(package.module)
    except Exception as error:  # a missing library comes as any of several errors
        raise BadInput(
            f"target {target!r} needs {package.title}, whose Python package {package.module} does not load here "
            f"({error}); {package.remedy}"
        ) from error
    version = str(getattr(module, "__version__", ""))
    if version.split(".")[0] != str(package.major):
        raise BadInput(
            f"{package.title} {version or 'of unknown version'} is installed; target {target!r} is written for version "
            f"{package.major}; {package.remedy}"
        )
    return module
