"""Makes the plugins of plugins/tensorrt known to TensorRT or TensorRT-RTX, before a graph that holds them is parsed."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_repo.runtime.errors import BadInput
from plugins.tensorrt import names

if TYPE_CHECKING:
    import onnx_ir as ir


def kernels_to_run() -> Path:
    """The library of CUDA kernels. Raises BadInput where `make plugins` has not built it."""
    from plugins.cuda.build import current_library

    found = current_library()
    if found is None:
        raise BadInput(
            "the graph holds plugins over the CUDA kernels, which are not built here: run `make plugins`, which needs "
            "nvcc"
        )
    return found


def plugin_names(model: ir.Model) -> frozenset[str]:
    """The plugins whose nodes a lowered graph holds."""
    return frozenset(node.op_type for node in model.graph if node.domain == names.DOMAIN)


def kernels_to_ask(plugins: Collection[str]) -> Path:
    """A library that describes the kernels of `plugins` (types, shapes, workspace), for the parser.

    Where the CUDA kernels are not built it is the emulated one, compiled with g++ (20 CPU seconds, once). Raises
    BadInput without a compiler, SlipwayError with the compiler's words.
    """
    from plugins.cuda.build import current_library
    from plugins.cuda.emulated import BUILD
    from plugins.cuda.emulated import Build as EmulatedBuild
    from plugins.tensorrt.python_plugin import FORMS
    from plugins.toolchain import cache_folder

    found = current_library()
    if found is not None:
        return found
    cache = cache_folder(BUILD, "the emulated kernels")
    return EmulatedBuild(
        operators=tuple(sorted({FORMS[name].operator for name in plugins})), cache=cache
    ).library()


def plugin_files(library: str) -> dict[str, Path]:
    """The plugins in C++ and the kernels that they call, by the names that they have beside an engine.

    Raises BadInput where one is missing.
    """
    from plugins.cuda.build import LIBRARY_NAME

    path = Path(library)
    files = {path.name: path, LIBRARY_NAME: path.with_name(LIBRARY_NAME)}
    for file in files.values():
        if not file.is_file():
            raise BadInput(
                f"target.plugin_library is {library!r}, and {file} is no file; `make plugins TENSORRT_INCLUDE=...` "
                "builds the library, beside a link to its kernels, and prints its path"
            )
    return files


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
