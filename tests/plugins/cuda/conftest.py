"""What tests of the CUDA kernels share: whether nvcc is here, and one build of the library for all of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from model_repo.runtime.errors import BadInput
from plugins.cuda import emulated
from plugins.cuda.build import Build, build
from plugins.cuda.nvcc import find_nvcc, parse_architectures
from plugins.cuda.units import CORE, FOLDER

CHECKED_ARCHITECTURES = "90a,120a"
"""What the tests compile: the chip with forms of its own, and one that runs the common forms."""


def _missing() -> str:
    try:
        find_nvcc()
    except BadInput as error:
        return str(error)
    return ""


needs_nvcc = pytest.mark.skipif(bool(_missing()), reason=_missing()[:100])


@pytest.fixture(scope="session")
def kernels() -> Build:
    """The library for `CHECKED_ARCHITECTURES`, compiled once; processes that run side by side wait for one another."""
    if _missing():
        pytest.skip(_missing())
    return build(parse_architectures(CHECKED_ARCHITECTURES))


def toy_sources(folder: Path) -> Path:
    """Fills `folder` with the sources that all operators share, and the toy as the only operator."""
    for shared in ("include", "emulator"):
        (folder / shared).symlink_to(FOLDER / shared)
    (folder / "csrc").mkdir()
    shared_files = [*CORE, "operator.hpp", "dispatch.hpp", "device.hpp", "slipway_kernels.h"]
    for name in shared_files:
        (folder / "csrc" / name).symlink_to(FOLDER / "csrc" / name)
    (folder / "csrc" / "toy.cu").symlink_to(Path(__file__).parent / "toy.cu")
    return folder


@pytest.fixture(scope="session")
def toy_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy operator in an emulated library, which takes tensors of the CPU."""
    folder = toy_sources(tmp_path_factory.mktemp("toy"))
    return emulated.Build(operators=("toy",), folder=folder).library()


@pytest.fixture(scope="session")
def emulated_library() -> Path:
    """All operators in an emulated library, on a device that has FP8."""
    os.environ["SLIPWAY_EMULATED_COMPUTE_CAPABILITY"] = "89"  # read when the library's first kernel starts
    return emulated.Build().library()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that asks for the built library waits for all of nvcc's work, perhaps another process's."""
    for item in items:
        if "kernels" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(1500))
