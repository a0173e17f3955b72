"""The GPU of this machine as its driver tells it: engines and timings of kernels belong to one."""

from __future__ import annotations

import ctypes
from typing import NamedTuple

_NAME_BYTES = 256
_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


class GpuHere(NamedTuple):
    """Name, and compute capability such as 9.0."""

    name: str
    capability: str


def gpu_here(library: str = "libcuda.so.1") -> GpuHere | None:
    """The first GPU, which builders take; None where no driver answers. `library`: the driver's."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return None
    device, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    major, minor = ctypes.c_int(), ctypes.c_int()
    answered = (
        driver.cuInit(0) == 0
        and driver.cuDeviceGet(ctypes.byref(device), 0) == 0
        and driver.cuDeviceGetName(name, _NAME_BYTES, device) == 0
        and driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device) == 0
        and driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device) == 0
    )
    if not answered:
        return None
    return GpuHere(name.value.decode(errors="replace"), f"{major.value}.{minor.value}")
