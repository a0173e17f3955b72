"""The Python packages of TensorRT and TensorRT-RTX: the same names, imported only where an engine is built."""

from __future__ import annotations

import atexit
import ctypes
import importlib
import importlib.metadata
import importlib.util
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
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


def installed(target: str) -> str:
    """The version of the target's package that is installed, without loading it; empty where none is."""
    name = PACKAGES[target].module.replace("_", "-")
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def load(target: str, plugins: bool = False) -> Any:
    """The package's module. `plugins`: its parser is to know plugins; ask for that with the first load of a process.

    Raises BadInput when it does not load or is of another major version.
    """
    package = PACKAGES[target]
    if plugins and target == "tensorrt-rtx":
        _name_libraries(package.module)
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


def _name_libraries(module: str) -> None:
    """Loads the package's libraries from a folder where the builder also has the name that the parser looks for.

    At a plugin node the parser opens `libtensorrt_rtx.so` beside itself; the wheel has only `libtensorrt_rtx.so.1`, and
    without the other name the process ends (TensorRT-RTX 1.7.1).
    """
    found = importlib.util.find_spec(f"{module}_libs")
    if found is None or found.origin is None:
        return  # installed in another way: the libraries are the user's
    folder = Path(tempfile.mkdtemp(prefix="slipway-tensorrt-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for library in Path(found.origin).parent.glob("*.so.*"):
        for name in (library.name, f"{library.name.partition('.so')[0]}.so"):
            (folder / name).symlink_to(library)
    for library in sorted(folder.glob("*.so.*"), key=lambda path: "parser" in path.name):
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
