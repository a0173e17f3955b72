"""Builds `libslipway_kernels.so` with nvcc: `python -m plugins.cuda.build [--arch 90a,120a] [--debug] [--jobs N]`.

Every unit of csrc/ becomes an object file of its own, kept under the hash of its text, of the headers of ours that
it includes, of the flags and of the compilers: a changed file rebuilds alone. Units named `*_sm90.cu` hold code that
only sm_90a has; they are compiled when 90a is asked for, and every unit then sees the macro SLIPWAY_ARCH_90A.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from model_repo.runtime.errors import SlipwayError
from plugins.console import print_table, progress
from plugins.toolchain import cache_folder, locked, run_command, run_measured

from .nvcc import DEFAULT_ARCHITECTURES, Architecture, Nvcc, find_nvcc, parse_architectures
from .units import FOLDER, all_units, include_folders, unit_hash

LIBRARY_NAME = "libslipway_kernels.so"
RECORD_NAME = "build.json"
IDENTITY_NAME = "identity.h"
COMPILE_FLAGS = (
    "-std=c++17",
    "-O3",
    "--expt-relaxed-constexpr",
    "-lineinfo",  # lets profilers and sanitizers name source lines; changes no machine code
    "-Xptxas=-v",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
)
DEBUG_FLAGS = ("-DSLIPWAY_DEBUG",)
"""Device code then checks what it reads from tensors (block indices and the like) and traps in words."""

LINK_FLAGS = ("-shared", "-cudart=static", "-Xcompiler=-static-libstdc++,-static-libgcc")
INTERFACE = "interface.cpp"
"""The unit that is told which build it is part of, and so compiled anew with each."""

EXPORTS = "{ global: slipway_*; local: *; };\n"
KEPT_SECONDS = 14 * 86400
"""Objects and libraries that no build used for so long are removed."""


@dataclass(frozen=True)
class BuiltUnit:
    """One object file, and what its compilation took and said, when it was compiled. ptxas: of its kernels.

    seconds: by the clock, other units beside it; cpu_seconds: of processors, whatever ran beside it.
    """

    unit: str
    seconds: float
    cpu_seconds: float
    cached: bool
    object_file: Path
    ptxas: str


@dataclass(frozen=True)
class Build:
    """A library and how it came about."""

    library: Path
    build_hash: str
    architectures: tuple[Architecture, ...]
    units: tuple[BuiltUnit, ...]
    link_seconds: float
    compiler: Nvcc

    def record(self) -> dict[str, object]:
        """What `build.json` beside the library holds."""
        return {
            "library": self.library.name,
            "build_hash": self.build_hash,
            "architectures": [a.name for a in self.architectures],
            "nvcc": self.compiler.version,
            "host_compiler": self.compiler.host_compiler,
            "link_seconds": round(self.link_seconds, 2),
            "units": [
                {
                    "unit": u.unit,
                    "seconds": round(u.seconds, 2),
                    "cpu_seconds": round(u.cpu_seconds, 2),
                    "cached": u.cached,
                }
                for u in self.units
            ],
        }


def version() -> str:
    """Slipway's version, as installed; "0" in a bare checkout."""
    try:
        return importlib.metadata.version("slipway")
    except importlib.metadata.PackageNotFoundError:
        return "0"


def build(
    architectures: Sequence[Architecture],
    *,
    debug: bool = False,
    jobs: int | None = None,
    folder: Path = FOLDER,
    output: Path | None = None,
) -> Build:
    """Compiles what is new and links.

    jobs: units compiled at a time, default: one a core. folder: holds csrc/ and include/. output: default
    `build/` in `folder`, or the user's cache folder. Raises BadInput when there is no nvcc or no place to write to,
    SlipwayError with the compiler's words when a unit does not compile.
    """
    compiler = find_nvcc()
    output = output or cache_folder(folder / "build", "the CUDA kernels")
    (output / "objects").mkdir(parents=True, exist_ok=True)
    with locked(output / "lock"):
        plan = _Plan(compiler, tuple(architectures), debug, folder, output)
        built = _compile_all(plan, jobs or os.cpu_count() or 1)
        result = _link(plan, built)
        _remove_unused(output)
    return result


def current_library() -> Path | None:
    """The library that was built last (`make plugins`), or None. Nothing is compiled."""
    link = cache_folder(FOLDER / "build", "the CUDA kernels") / LIBRARY_NAME
    return link.resolve() if link.is_file() else None


@dataclass(frozen=True)
class _Plan:
    compiler: Nvcc
    architectures: tuple[Architecture, ...]
    debug: bool
    folder: Path
    output: Path

    @property
    def units(self) -> list[Path]:
        """Units to compile without the interface; those with most source text first: they take longest."""
        units = [unit for unit in all_units(self.folder) if unit.name != INTERFACE and self.targets(unit)]
        return sorted(units, key=lambda unit: (-unit.stat().st_size, unit.name))

    def targets(self, unit: Path) -> tuple[Architecture, ...]:
        """Architectures that a unit is compiled for."""
        if unit.stem.endswith("_sm90"):
            return tuple(a for a in self.architectures if a == Architecture("90a"))
        return self.architectures

    def flags(self, unit: Path) -> list[str]:
        flags = [*COMPILE_FLAGS, *(DEBUG_FLAGS if self.debug else ())]
        if Architecture("90a") in self.architectures:
            flags.append("-DSLIPWAY_ARCH_90A")
        for architecture in self.targets(unit):
            flags += architecture.flags
        return flags

    def object_hash(self, unit: Path, extra: Sequence[str] = ()) -> str:
        settings = (self.compiler.version, self.compiler.host_compiler, self.flags(unit), tuple(extra))
        return unit_hash(unit, self._include_folders, settings)

    @property
    def _include_folders(self) -> tuple[Path, ...]:
        return include_folders(self.folder)[:2]  # the emulator is no part of what nvcc compiles

    def command(self, unit: Path, target: Path, extra: Sequence[str]) -> list[str]:
        includes = [f"-I{folder}" for folder in self._include_folders]
        program = str(self.compiler.program)
        return [program, *self.flags(unit), *extra, *includes, "-c", str(unit), "-o", str(target)]


def _compile_all(plan: _Plan, jobs: int) -> list[BuiltUnit]:
    units = plan.units
    built = []
    with progress("compiling", len(units)) as advance, ThreadPoolExecutor(max_workers=jobs) as pool:
        futures = [pool.submit(_compile, plan, unit) for unit in units]
        try:
            for future in as_completed(futures):
                built.append(future.result())
                advance(built[-1].unit)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    return sorted(built, key=lambda unit: unit.unit)


def _compile(plan: _Plan, unit: Path, extra: Sequence[str] = ()) -> BuiltUnit:
    digest = plan.object_hash(unit, extra)
    target = plan.output / "objects" / f"{unit.stem}-{digest}.o"
    record = target.with_suffix(".json")
    if target.is_file() and record.is_file():
        for file in (target, record):
            os.utime(file)
        known = json.loads(record.read_text(encoding="utf-8"))
        return BuiltUnit(unit.name, known["seconds"], known["cpu_seconds"], True, target, known["ptxas"])
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=plan.output, prefix="compiling-") as name:
        made = Path(name) / target.name
        words, cpu_seconds = run_measured(plan.command(unit, made, extra))
        if plan.object_hash(unit, extra) != digest:
            raise SlipwayError(f"{unit.name} or a header of it changed while it was compiled: build again")
        seconds = time.perf_counter() - started
        notes = Path(name) / record.name
        notes.write_text(
            json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "ptxas": words}), encoding="utf-8"
        )
        notes.replace(record)
        made.replace(target)
    return BuiltUnit(unit.name, seconds, cpu_seconds, False, target, words)


def _link(plan: _Plan, built: Sequence[BuiltUnit]) -> Build:
    interface = plan.folder / "csrc" / INTERFACE
    parts = [*(unit.object_file.name for unit in built), plan.object_hash(interface), *LINK_FLAGS, version()]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    identity = {
        "SLIPWAY_VERSION": version(),
        "SLIPWAY_BUILD_HASH": digest,
        "SLIPWAY_ARCHITECTURES": [a.name for a in plan.architectures],
    }
    # The values are JSON, in C string literals: the library prints them as they are.
    macros = [f"#define {name} {json.dumps(json.dumps(value))}\n" for name, value in identity.items()]
    folder = plan.output / digest
    folder.mkdir(exist_ok=True)
    (folder / IDENTITY_NAME).write_text("".join(macros), encoding="utf-8")
    units = (*built, _compile(plan, interface, ["-include", str(folder / IDENTITY_NAME)]))
    library = folder / LIBRARY_NAME
    started = time.perf_counter()
    if not library.is_file():
        with tempfile.TemporaryDirectory(dir=plan.output, prefix="linking-") as name:
            exports = Path(name) / "exports.map"
            exports.write_text(EXPORTS, encoding="utf-8")
            made = Path(name) / LIBRARY_NAME
            objects = [str(unit.object_file) for unit in units]
            # Given for the link too: without a chip nvcc would name its default one there.
            flags = [*LINK_FLAGS, f"-Xlinker=--version-script={exports}", *plan.architectures[0].flags]
            run_command([str(plan.compiler.program), *flags, *objects, "-o", str(made)])
            made.replace(library)
    result = Build(library, digest, plan.architectures, units, time.perf_counter() - started, plan.compiler)
    _publish(result, plan.output)
    return result


def _publish(result: Build, output: Path) -> None:
    """Writes the record, and points `build/libslipway_kernels.so` to the library; each by one rename."""
    folder = result.library.parent
    record = folder / f"{RECORD_NAME}.new"
    record.write_text(json.dumps(result.record(), indent=2) + "\n", encoding="utf-8")
    record.replace(folder / RECORD_NAME)
    os.utime(folder)
    link = output / f"{LIBRARY_NAME}.new"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(result.build_hash) / LIBRARY_NAME)
    link.replace(output / LIBRARY_NAME)


def _remove_unused(output: Path) -> None:
    oldest = time.time() - KEPT_SECONDS
    for file in (output / "objects").iterdir():
        if file.stat().st_mtime < oldest:
            file.unlink()
    for library in output.glob(f"*/{LIBRARY_NAME}"):
        if library.parent.stat().st_mtime < oldest:
            for name in (LIBRARY_NAME, RECORD_NAME, IDENTITY_NAME):
                (library.parent / name).unlink(missing_ok=True)
            library.parent.rmdir()


def print_build(result: Build) -> None:
    """The table of seconds a unit, and where the library lies."""
    rows = [
        (
            u.unit,
            round(u.seconds, 1),
            round(u.cpu_seconds, 1),
            "" if u.cached else "compiled",
            u.object_file.stat().st_size >> 10,
        )
        for u in sorted(result.units, key=lambda u: -u.seconds)
    ]
    names = ", ".join(a.name for a in result.architectures)
    print_table(f"CUDA kernels for {names}", ("unit", "seconds", "of CPU", "this time", "KiB"), rows)
    total = sum(unit.cpu_seconds for unit in result.units)
    print(f"{total:.0f} s of CPU for all units, when each was compiled")
    print(f"{result.library} (linked in {result.link_seconds:.1f} s)")


def main(arguments: Iterable[str] | None = None) -> int:
    """Entry of `python -m plugins.cuda.build`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m plugins.cuda.build", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default=DEFAULT_ARCHITECTURES, help="default: %(default)s")
    parser.add_argument("--debug", action="store_true", help="device code checks indices that it reads")
    parser.add_argument("--jobs", type=int, help="units compiled at a time; default: one a core")
    parser.add_argument("--json", type=Path, help="file to write the seconds of each unit to")
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        result = build(parse_architectures(options.arch), debug=options.debug, jobs=options.jobs)
    except SlipwayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print_build(result)
    if options.json:
        options.json.write_text(json.dumps(result.record(), indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
