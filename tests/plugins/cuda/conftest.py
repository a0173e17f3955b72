"""What tests of the CUDA kernels share: whether nvcc is here, and one build of the library for all of them."""

from __future__ import annotations

import pytest

from model_repo.runtime.errors import BadInput
from plugins.cuda.build import Build, build
from plugins.cuda.nvcc import find_nvcc, parse_architectures

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
