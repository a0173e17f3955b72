"""What tests of the TensorRT plugins share: the kernels, emulated, so that they run on memory of the CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plugins.cuda import emulated
from plugins.cuda.library import Library
from plugins.tensorrt.build import build
from tests.plugins.tensorrt.library import INCLUDE


@pytest.fixture(scope="session", name="kernels_path")
def emulated_path() -> Path:
    """All operators in an emulated library, on a device that has FP8."""
    os.environ["SLIPWAY_EMULATED_COMPUTE_CAPABILITY"] = "89"  # read when the library's first kernel starts
    return emulated.Build().library()


@pytest.fixture(scope="session")
def kernels(kernels_path: Path) -> Library:
    """That library, loaded."""
    return Library(kernels_path)


@pytest.fixture(scope="session")
def plugin_library(kernels_path: Path) -> Path:
    """The plugins in C++ over these kernels."""
    return build(INCLUDE, kernels_path)
