"""The package that an engine of TensorRT or TensorRT-RTX needs, and the plugins that are registered with it."""

from __future__ import annotations

import importlib
from typing import Any

from .built_engine import BuiltEngine
from .errors import BadInput

_loaded: set[tuple[str, str]] = set()
"""Libraries of plugins that this process has loaded, by package and file name: plugins are registered once."""


def package_of(built: BuiltEngine) -> Any:
    """The module of the package that built an engine. Raises BadInput where it does not load."""
    try:
        return importlib.import_module(built.module)
    except Exception as error:  # a missing library comes as any of several errors
        raise BadInput(
            f"{built.path.name} is an engine of {built.title} {built.version}, whose package {built.module!r} does not "
            f"load here ({error}): pip install {built.requirement}"
        ) from error


def load_plugins(trt: Any, built: BuiltEngine) -> None:
    """Registers an engine's plugins in C++. Raises BadInput for a library that is missing or does not load."""
    for library in built.plugins:
        if (trt.__name__, library.name) in _loaded:
            continue
        if not library.is_file():
            raise BadInput(
                f"{library}, the library of plugins that {built.path.name} was built with, is missing; build the "
                "engine again, or `make plugins TENSORRT_INCLUDE=...` and put it there, beside its kernels"
            )
        if trt.get_plugin_registry().load_library(str(library)) is None:
            raise BadInput(
                f"{built.title} {trt.__version__} does not load the plugins of {library}; build them again with its "
                "headers (`make plugins TENSORRT_INCLUDE=...`), and see that the kernels' library lies beside them"
            )
        _loaded.add((trt.__name__, library.name))
