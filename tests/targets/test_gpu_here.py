"""The GPU of this machine, asked of a driver that is compiled here."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.targets.tensorrt.gpu_here import GpuHere, gpu_here
from plugins.cpu.build import find_compiler
from plugins.toolchain import run_command

DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return STATUS; }
int cuDeviceGet(int *device, int place) { *device = 7 + place; return 0; }
int cuDeviceGetName(char *name, int bytes, int device) {
    strncpy(name, device == 7 ? "NVIDIA H200" : "another", bytes);
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : -1;
    return 0;
}
"""


@pytest.mark.parametrize(("status", "found"), [(0, GpuHere("NVIDIA H200", "9.0")), (100, None)])
def test_a_driver_tells_name_and_compute_capability(
    tmp_path: Path, status: int, found: GpuHere | None
) -> None:
    """Status 100 is CUDA_ERROR_NO_DEVICE."""
    source, library = tmp_path / "driver.c", tmp_path / "libcuda.so.1"
    source.write_text(DRIVER)
    command = [*find_compiler().command, "-x", "c", "-shared", "-fPIC", f"-DSTATUS={status}"]
    run_command([*command, str(source), "-o", str(library)])
    assert gpu_here(str(library)) == found


def test_without_a_driver_there_is_none(tmp_path: Path) -> None:
    assert gpu_here(str(tmp_path / "libcuda.so.1")) is None
