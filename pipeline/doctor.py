"""`doctor`: what works on this machine, and for what does not, why and what to install."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from model_repo.runtime.errors import BadInput

from .disk import free_bytes, in_words
from .packages import DISTRIBUTIONS, version
from .recipe import TARGETS

OLDEST_PYTHON = (3, 11)
_PROBE_SECONDS = 30


class Diagnosis(NamedTuple):
    """One thing that Slipway uses. `remedy` is empty when it works, or when nothing needs it."""

    what: str
    works: bool
    found: str
    remedy: str = ""


def diagnose() -> list[Diagnosis]:
    """Python, packages, compilers, targets, GPU, server and disk, in that order."""
    compilers = [_compiler(), _cuda_compiler()]
    return [_python(), *_packages(), *compilers, *_targets(), _gpu(), _server(), _disk()]


def _python() -> Diagnosis:
    found = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        return Diagnosis("Python", False, found, "install Python 3.11 or newer")
    return Diagnosis("Python", True, found)


def _packages() -> Iterator[Diagnosis]:
    for package, distribution in DISTRIBUTIONS.items():
        found = version(distribution)
        remedy = f"pip install {distribution}" if found == "absent" else ""
        yield Diagnosis(f"package {package}", found != "absent", found, remedy)


def _compiler() -> Diagnosis:
    from plugins.cpu.build import find_compiler

    try:
        return Diagnosis("C++ compiler", True, find_compiler().version)
    except BadInput as error:
        return Diagnosis("C++ compiler", False, "none", str(error))


def _cuda_compiler() -> Diagnosis:
    """Only the CUDA kernels need it, which targets for GPUs use, so that none is no problem."""
    from plugins.cuda.nvcc import find_nvcc

    try:
        nvcc = find_nvcc()
    except BadInput as error:
        return Diagnosis("CUDA compiler", True, f"none; only `make plugins` asks for one: {error}")
    return Diagnosis("CUDA compiler", True, f"nvcc {nvcc.version} ({nvcc.program})")


def _targets() -> Iterator[Diagnosis]:
    for name in TARGETS:
        try:
            from .targets import get_target

            problems = get_target(name).requirements()
        except ImportError as error:
            yield Diagnosis(f"target {name}", False, str(error), "run `make environments`")
            continue
        if problems:
            found = "; ".join(problem.what for problem in problems)
            yield Diagnosis(f"target {name}", False, found, "; ".join(p.remedy for p in problems))
        else:
            yield Diagnosis(f"target {name}", True, "ready")


def _gpu() -> Diagnosis:
    """Building takes none but for target tensorrt, and the default target runs without, so that none is no problem."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Diagnosis(
            "GPU",
            True,
            "none (no nvidia-smi); engines of onnxruntime-cuda, tensorrt and tensorrt-rtx run where one is",
        )
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    found, failed = _output_of(query)
    if failed:
        return Diagnosis("GPU", False, found, "nvidia-smi does not answer: check the NVIDIA driver")
    return Diagnosis("GPU", True, found)


def _server() -> Diagnosis:
    from .serve import find_tritonserver

    remedy = "run `make environments`, or use a Triton container; needed to serve, not to build"
    try:
        program = find_tritonserver()
    except BadInput as error:
        return Diagnosis("tritonserver", False, str(error), remedy)
    found, _ = _output_of([str(program), "--help"])  # whose exit code is 1 for some versions
    if not found.startswith("Usage"):
        return Diagnosis("tritonserver", False, f"{program} does not run: {found}", remedy)
    return Diagnosis("tritonserver", True, str(program))


def _disk() -> Diagnosis:
    from pathlib import Path

    return Diagnosis("disk here", True, f"{in_words(free_bytes(Path.cwd()))} free")


def _output_of(command: list[str]) -> tuple[str, bool]:
    """The first line that a program prints, and whether it failed."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error), True
    lines = (result.stdout or result.stderr).strip().splitlines() or ["no answer"]
    return lines[0], result.returncode != 0
