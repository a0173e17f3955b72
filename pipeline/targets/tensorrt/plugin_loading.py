"""Makes the plugins of plugins/tensorrt known to TensorRT or TensorRT-RTX, before a graph that holds them is parsed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model_repo.runtime.errors import BadInput


def load_plugins(trt: Any, library: str | None, kernels: str | None) -> None:
    """Fills the registry of `trt` with the C++ plugins of the file `library`, or with the Python plugins over the CUDA
    kernels of the file `kernels`; with nothing when both are None.

    Raises BadInput for a file that does not load, or that has the same plugins as are known already.
    """
    if kernels is not None:
        from plugins.cuda.library import Library
        from plugins.tensorrt.python_plugin import register

        register(trt, Library(Path(kernels)))
    if library is not None and trt.get_plugin_registry().load_library(library) is None:
        raise BadInput(
            f"{library} is no library of plugins that {trt.__name__} {trt.__version__} loads: build it with "
            "`make plugins TENSORRT_INCLUDE=...`"
        )
