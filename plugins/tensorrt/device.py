"""The one thing that a Python plugin does with device memory itself, by cuda-python or else by pycuda.

Imported when an engine runs, never when it is built.
"""

from __future__ import annotations

import importlib
from typing import Any

from model_repo.runtime.errors import BadInput, SlipwayError


def copy(destination: int, source: int, count: int, stream: int) -> None:
    """Copies `count` bytes on the device, in the order of `stream` (a cudaStream_t).

    pycuda has no way to use a stream that it did not make, so it waits for the device before and after. Raises BadInput
    where neither package is installed, SlipwayError with the driver's code when it refuses.
    """
    driver = _module("cuda.bindings.driver")
    if driver is not None:
        (code,) = driver.cuMemcpyDtoDAsync(destination, source, count, stream)
        if int(code) != 0:
            raise SlipwayError(
                f"the driver does not copy {count} bytes from {source:#x} to {destination:#x}: {code}"
            )
        return
    driver = _module("pycuda.driver")
    if driver is None:
        raise BadInput(
            "TensorRT's Python plugins need cuda-python or pycuda where pools are not bound in place: "
            "pip install cuda-python, or give the input and the output of each pool one address"
        )
    driver.Context.synchronize()
    driver.memcpy_dtod(destination, source, count)
    driver.Context.synchronize()


def _module(name: str) -> Any | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
