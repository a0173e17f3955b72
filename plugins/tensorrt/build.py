"""Builds `libslipway_tensorrt.so`, the plugins in C++: `python -m plugins.tensorrt.build --include DIR`.

DIR holds TensorRT's headers: Debian's /usr/include/x86_64-linux-gnu, `include` of the tar file, or of the public
NVIDIA/TensorRT repository. The library links nothing of TensorRT; it finds the kernels, `libslipway_kernels.so`, in its
own folder. To load it: `registry.load_library`, `trtexec --dynamicPlugins` or Triton's
`--backend-config=tensorrt,plugins=...`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from model_repo.runtime.errors import BadInput, SlipwayError
from plugins.cpu.build import find_compiler
from plugins.cuda.build import KEPT_SECONDS, current_library
from plugins.cuda.build import LIBRARY_NAME as KERNELS
from plugins.cuda.nvcc import STANDARD_PLACE, find_nvcc
from plugins.cuda.units import FOLDER as CUDA
from plugins.toolchain import cache_folder, locked, run_command

SOURCES = Path(__file__).parent / "csrc"
LIBRARY_NAME = "libslipway_tensorrt.so"
EXPORTS = "{ global: getCreators; setLoggerFinder; local: *; };\n"
HEADER, CUDA_HEADER = "NvInferRuntime.h", "cuda_runtime_api.h"
FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-deprecated-declarations",  # TensorRT's headers use what they deprecate
    "-Wno-unused-parameter",  # and leave parameters unused
)
LINK_FLAGS = ("-shared", "-static-libstdc++", "-static-libgcc", "-Wl,-rpath,$ORIGIN", "-Wl,-z,defs")


def build(include: Path, kernels: Path | None = None, output: Path | None = None) -> Path:
    """Compiles and links, unless this has been done; gives the library's path, in a folder with a link to the kernels.

    include: folder of TensorRT's headers. kernels: the library of kernels, by default what `make plugins` built.
    output: default `build/` beside this file, or the user's cache folder. Raises BadInput when headers, kernels or
    compiler are missing, SlipwayError with the compiler's words when it fails.
    """
    compiler = find_compiler()
    kernels = kernels or current_library()
    if kernels is None:
        raise BadInput("the CUDA kernels, which the plugins call, are not built here: run `make plugins`")
    if not (include / HEADER).is_file():
        raise BadInput(
            f"{include} holds no {HEADER}; give the folder that does: Debian's libnvinfer-headers-dev installs it in "
            "/usr/include/x86_64-linux-gnu, and the tar file of TensorRT has it in include/"
        )
    includes = [include, _cuda_include(include), CUDA / "csrc"]
    digest = hashlib.sha256(repr((compiler, FLAGS, LINK_FLAGS, EXPORTS, kernels.resolve())).encode())
    for source in (
        *sorted(SOURCES.iterdir()),
        CUDA / "csrc" / "slipway_kernels.h",
        *sorted(include.glob("NvInfer*.h")),
    ):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    output = output or cache_folder(SOURCES.parent / "build", "TensorRT's plugins")
    folder = output / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / LIBRARY_NAME
    with locked(output / "lock"):
        if not library.is_file():
            _compile(compiler.command, includes, kernels, library)
        os.utime(folder)
        _remove_unused(output)
    return library


def _remove_unused(output: Path) -> None:
    """Takes away libraries that nobody asked for since `KEPT_SECONDS`: of other headers, kernels or sources."""
    oldest = time.time() - KEPT_SECONDS
    for library in output.glob(f"*/{LIBRARY_NAME}"):
        if library.parent.stat().st_mtime < oldest:
            shutil.rmtree(library.parent)


def _cuda_include(include: Path) -> Path:
    """Folder of CUDA's own header, which TensorRT's include. Raises BadInput when there is none."""
    places = [include, STANDARD_PLACE / "include"]
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        places.insert(1, Path(home) / "include")
    if not any((place / CUDA_HEADER).is_file() for place in places):
        places.append(find_nvcc().program.resolve().parents[1] / "include")
    found = next((place for place in places if (place / CUDA_HEADER).is_file()), None)
    if found is None:
        raise BadInput(
            f"{CUDA_HEADER}, which TensorRT's headers include, is in none of {', '.join(map(str, places))}; "
            "install cuda-cudart-dev, or set CUDA_HOME"
        )
    return found


def _compile(command: Sequence[str], includes: Sequence[Path], kernels: Path, library: Path) -> None:
    """All sources in one call; the library appears by one rename, beside a link to the kernels."""
    link = library.with_name(KERNELS)
    link.unlink(missing_ok=True)
    link.symlink_to(kernels.resolve())
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="linking-") as scratch:
        made, exports = Path(scratch) / library.name, Path(scratch) / "exports.map"
        exports.write_text(EXPORTS, encoding="utf-8")
        sources = [str(source) for source in sorted(SOURCES.glob("*.cpp"))]
        folders = [f"-I{folder}" for folder in includes]
        libraries = [f"-L{library.parent}", f"-l:{KERNELS}", f"-Wl,--version-script={exports}"]
        run_command([*command, *FLAGS, *LINK_FLAGS, *folders, *sources, *libraries, "-o", str(made)])
        made.replace(library)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m plugins.tensorrt.build`. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m plugins.tensorrt.build", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--include", type=Path, required=True, help=f"folder of TensorRT's {HEADER}")
    options = parser.parse_args(arguments)
    try:
        print(build(options.include))
    except SlipwayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
