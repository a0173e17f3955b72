"""Builds `libslipway_cpu.so`, the library with the CPU operators, and registers it with ONNX Runtime.

The library is compiled once a version of the sources, flags and compiler: it lies in a folder named by their
hash. `python -m plugins.cpu.build` builds it and prints its path and the seconds it took.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from model_repo.runtime.errors import BadInput, SlipwayError
from plugins.toolchain import cache_folder, locked, run_command

if TYPE_CHECKING:
    import onnxruntime

LIBRARY_NAME = "libslipway_cpu.so"
SOURCES = Path(__file__).parent
COMMON_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    # GCC's own AVX-512 header leaves "undefined" registers uninitialized on purpose (GCC bug 105593).
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
)
LINK_FLAGS = ("-shared", "-static-libstdc++", "-static-libgcc", "-Wl,-Bsymbolic", "-pthread")
X86_FLAGS: Mapping[str, tuple[str, ...]] = {
    "avx512_vnni": (
        "-mavx2",
        "-mfma",
        "-mf16c",
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mavx512vnni",
    ),
    "avx512": ("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
}
"""Flags of the files that hold one instruction set's kernels, by file stem."""

DEBIAN_ORT_INCLUDES = (Path("/usr/include/onnxruntime"), Path("/usr/include/onnxruntime/core/session"))
"""Where Debian's libonnxruntime-dev puts ONNX Runtime's header."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler: its command, and what it says of itself (version and target machine)."""

    command: tuple[str, ...]
    version: str
    machine: str

    @property
    def targets_x86(self) -> bool:
        """Whether it compiles for x86-64."""
        return self.machine.startswith("x86_64")


def find_compiler() -> Compiler:
    """`$CXX`, or else g++. Raises BadInput when there is none that runs."""
    command = tuple(shlex.split(os.environ.get("CXX", ""))) or ("g++",)
    if shutil.which(command[0]) is None:
        raise BadInput(
            f"no C++ compiler: {command[0]!r} is not on the PATH. The CPU operators are compiled once on the "
            "machine that builds engines; install g++ (Debian, Ubuntu: apt-get install g++), or set CXX to a "
            "compiler that knows C++17"
        )
    version = run_command([*command, "--version"]).splitlines()[0]
    machine = run_command([*command, "-dumpmachine"]).strip()
    return Compiler(command, version, machine)


def library_path(ort_include: Path | None = None) -> Path:
    """Path of the library; compiles it first if sources, flags or compiler are new (some 20 s on 2 cores).

    `ort_include`: folder of ONNX Runtime's `onnxruntime_c_api.h`; where given, or where Debian's package has
    put it, the build checks our declarations against it. Raises BadInput when there is no compiler, or no
    place to write to, and SlipwayError with the compiler's words when it fails.
    """
    compiler = find_compiler()
    include = ort_include or next(
        (p for p in DEBIAN_ORT_INCLUDES if (p / "onnxruntime_c_api.h").is_file()), None
    )
    if include is not None and not (include / "onnxruntime_c_api.h").is_file():
        raise BadInput(f"{include} holds no onnxruntime_c_api.h; give the folder that does, or none")
    return _library(compiler, include)


def registered(session_options: onnxruntime.SessionOptions) -> None:
    """Registers the operators, building the library if needed: sessions made of these options know them."""
    session_options.register_custom_ops_library(str(library_path()))


@cache
def _library(compiler: Compiler, ort_include: Path | None) -> Path:
    folder = _cache_folder() / _build_hash(compiler, ort_include)
    library = folder / LIBRARY_NAME
    if library.is_file():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        if not library.is_file():  # another process may have built it while this one waited
            started = time.perf_counter()
            _compile(compiler, ort_include, library)
            _log.info(
                "compiled %s in %.1f s with %s", library, time.perf_counter() - started, compiler.version
            )
    return library


def _sources() -> list[Path]:
    """All files that decide the result, in a fixed order."""
    return sorted(p for part in ("include", "kernels", "src") for p in (SOURCES / part).iterdir())


def _build_hash(compiler: Compiler, ort_include: Path | None) -> str:
    digest = hashlib.sha256()
    settings = (compiler, COMMON_FLAGS, LINK_FLAGS, sorted(X86_FLAGS.items()), str(ort_include))
    digest.update(repr(settings).encode())
    for source in _sources():
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _cache_folder() -> Path:
    return cache_folder(SOURCES / "build", "the CPU operators")


def _compile(compiler: Compiler, ort_include: Path | None, library: Path) -> None:
    """Compiles every source on its own, side by side, and links; the library appears by one rename."""
    units = [source for source in _sources() if source.suffix == ".cpp"]
    if ort_include is None:
        units = [unit for unit in units if unit.stem != "ort_check"]
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="objects-") as name:
        objects = Path(name)

        def compile_unit(unit: Path) -> Path:
            target = objects / f"{unit.stem}.o"
            flags = list(COMMON_FLAGS)
            flags += X86_FLAGS.get(unit.stem, ()) if compiler.targets_x86 else ()
            flags += [f"-I{SOURCES / part}" for part in ("include", "kernels")]
            if unit.stem == "ort_check":
                flags.append(f"-I{ort_include}")
            run_command([*compiler.command, *flags, "-c", str(unit), "-o", str(target)])
            return target

        # The biggest units first: they take longest.
        units.sort(key=lambda unit: unit.stem not in (*X86_FLAGS, "plain"))
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            compiled = list(pool.map(compile_unit, units))
        linked = objects / LIBRARY_NAME
        run_command([*compiler.command, *LINK_FLAGS, *map(str, compiled), "-o", str(linked)])
        linked.replace(library)


def main() -> int:
    """Entry of `python -m plugins.cpu.build`. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m plugins.cpu.build", description="Compile the CPU operators."
    )
    parser.add_argument("--ort-include", type=Path, help="folder of onnxruntime_c_api.h, to check against")
    arguments = parser.parse_args()
    started = time.perf_counter()
    try:
        path = library_path(arguments.ort_include)
    except SlipwayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{path} ({time.perf_counter() - started:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
