"""The build of the CUDA library: what is compiled anew, what a library exports, one clear error without nvcc."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model_repo.runtime.errors import BadInput, SlipwayError
from plugins.cuda import build as cuda_build
from plugins.cuda import nvcc
from plugins.cuda.nvcc import Architecture, parse_architectures
from tests.plugins.cuda.conftest import needs_nvcc

INTERFACE = """
#include <string>
void launch_doubled(float* x);
extern "C" __attribute__((visibility("default"))) const char* slipway_kernels_info() {
  static const std::string text = "[" SLIPWAY_VERSION ", " SLIPWAY_BUILD_HASH ", " SLIPWAY_ARCHITECTURES "]";
  return text.c_str();
}
__attribute__((visibility("default"))) void not_ours(float* x) { launch_doubled(x); }
"""
UNIT = """
#include "scale.cuh"
__global__ void doubled(float* x) { x[threadIdx.x] *= kFactor; }
void launch_doubled(float* x) { doubled<<<1, 32>>>(x); }
#ifdef SLIPWAY_ARCH_90A
void launch_doubled_sm90(float* x);
void launch_form(float* x) { launch_doubled_sm90(x); }
#endif
"""
UNIT_SM90 = """
#include "scale.cuh"
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
#error "only for 9.0"
#endif
__global__ void doubled_sm90(float* x) { x[threadIdx.x] += x[threadIdx.x]; }
void launch_doubled_sm90(float* x) { doubled_sm90<<<1, 32>>>(x); }
"""


@pytest.fixture(name="sources")
def small_sources(tmp_path: Path) -> Path:
    """Two small kernels, one of them for one chip, and an interface that says which build it is."""
    folder = tmp_path / "cuda"
    (folder / "include").mkdir(parents=True)
    (folder / "csrc").mkdir()
    (folder / "csrc" / "interface.cpp").write_text(INTERFACE)
    (folder / "include" / "scale.cuh").write_text("constexpr float kFactor = 2.0f;\n")
    (folder / "csrc" / "doubled.cu").write_text(UNIT)
    (folder / "csrc" / "doubled_sm90.cu").write_text(UNIT_SM90)
    return folder


def build(sources: Path, names: str = "90a", **options: int) -> cuda_build.Build:
    return cuda_build.build(parse_architectures(names), folder=sources, output=sources / "build", **options)


def compiled(result: cuda_build.Build) -> set[str]:
    return {unit.unit for unit in result.units if not unit.cached}


@needs_nvcc
def test_only_what_changed_is_compiled_again(sources: Path) -> None:
    first = build(sources)
    assert compiled(first) == {"doubled.cu", "doubled_sm90.cu", "interface.cpp"}
    second = build(sources)
    assert compiled(second) == set()
    assert second.library == first.library

    (sources / "csrc" / "doubled.cu").write_text(UNIT.replace("*=", "+="))
    third = build(sources)
    assert compiled(third) == {"doubled.cu", "interface.cpp"}  # the interface names the build
    assert third.library != first.library

    (sources / "include" / "scale.cuh").write_text("constexpr float kFactor = 4.0f;\n")
    assert compiled(build(sources)) == {"doubled.cu", "doubled_sm90.cu", "interface.cpp"}
    assert compiled(build(sources, debug=True)) == {"doubled.cu", "doubled_sm90.cu", "interface.cpp"}


@needs_nvcc
def test_code_of_one_chip_is_left_out_elsewhere(sources: Path) -> None:
    result = build(sources, "80,120a")
    assert compiled(result) == {"doubled.cu", "interface.cpp"}
    both = build(sources, "90a,80")
    words = {unit.unit: unit.ptxas for unit in both.units}
    assert "'sm_90a'" in words["doubled_sm90.cu"]
    assert "'sm_80'" not in words["doubled_sm90.cu"]
    assert "'sm_80'" in words["doubled.cu"]


@needs_nvcc
def test_library_exports_the_interface_alone_and_needs_no_runtime(sources: Path) -> None:
    result = build(sources, "90a")
    library = result.library
    loaded = ctypes.CDLL(str(library))
    loaded.slipway_kernels_info.restype = ctypes.c_char_p
    assert json.loads(loaded.slipway_kernels_info()) == [cuda_build.version(), result.build_hash, ["sm_90a"]]
    nm, readelf = shutil.which("nm"), shutil.which("readelf")
    if nm is None or readelf is None:
        pytest.skip("no binutils here")
    symbols = subprocess.run(
        [nm, "-D", "--defined-only", library], capture_output=True, text=True, check=True
    )
    names = [line.split()[-1] for line in symbols.stdout.splitlines()]
    assert names == ["slipway_kernels_info"]
    dynamic = subprocess.run([readelf, "-d", library], capture_output=True, text=True, check=True).stdout
    assert [word for word in ("libstdc++", "libcudart", "libcuda.so", "libgcc") if word in dynamic] == []


@needs_nvcc
def test_record_says_how_it_was_built(sources: Path) -> None:
    result = build(sources, "120a,90a")
    record = json.loads((result.library.parent / "build.json").read_text())
    assert record["architectures"] == ["sm_90a", "sm_120a"]
    assert record["build_hash"] == result.build_hash
    assert record["nvcc"] == nvcc.find_nvcc().version
    assert {unit["unit"]: unit["seconds"] > 0 and unit["cpu_seconds"] > 0 for unit in record["units"]} == {
        "doubled.cu": True,
        "doubled_sm90.cu": True,
        "interface.cpp": True,
    }
    assert (sources / "build" / "libslipway_kernels.so").resolve() == result.library


@needs_nvcc
def test_failing_unit_is_quoted_and_nothing_is_published(sources: Path) -> None:
    (sources / "csrc" / "doubled.cu").write_text("this is no C++;\n")
    with pytest.raises(SlipwayError, match=r"(?s)doubled\.cu.*failed with exit code.*error"):
        build(sources)
    assert not list((sources / "build").rglob("*.so"))
    assert not list((sources / "build").glob("compiling-*"))


@needs_nvcc
def test_header_that_changes_during_compilation_is_noticed(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str]) -> tuple[str, float]:
        (sources / "include" / "scale.cuh").write_text("// another\nconstexpr float kFactor = 3.0f;\n")
        return "", 0.0

    monkeypatch.setattr(cuda_build, "run_measured", run)
    with pytest.raises(SlipwayError, match=r"doubled.*changed while it was compiled"):
        build(sources, jobs=1)  # side by side, the other unit may begin after the change


@needs_nvcc
def test_unused_objects_are_removed(sources: Path) -> None:
    build(sources)
    old = sources / "build" / "objects" / "old-0123.o"
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    kept = set((sources / "build" / "objects").iterdir()) - {old}
    build(sources)
    assert set((sources / "build" / "objects").iterdir()) == kept


def test_no_compiler_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setattr(nvcc, "STANDARD_PLACE", tmp_path / "usual")
    with pytest.raises(
        BadInput, match=r"not on the PATH, CUDA_HOME is .*cuda.*usual.*Install the toolkit of CUDA 12\.8"
    ):
        nvcc.find_nvcc()


def test_old_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvcc"
    program.write_text('#!/bin/sh\necho "Cuda compilation tools, release 11.4, V11.4.48"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(BadInput, match=r"is of CUDA 11\.4; the kernels need CUDA 12\.8"):
        nvcc.find_nvcc()


def test_entry_without_compiler_exits_2(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from plugins.cuda import build, nvcc; "
        f"nvcc.STANDARD_PLACE = pathlib.Path({str(tmp_path)!r}); sys.exit(build.main(['--arch', '90a']))"
    )
    environment = {**os.environ, "PATH": str(tmp_path)}
    environment.pop("CUDA_HOME", None)
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "error: no CUDA compiler" in result.stderr
    assert "Traceback" not in result.stderr


def test_architectures_are_sorted_and_checked() -> None:
    parsed = parse_architectures("120a, sm_80,90a,80,100+ptx")
    assert [a.name for a in parsed] == ["sm_80", "sm_90a", "compute_100", "sm_120a"]
    assert parsed[2].flags == ("-gencode", "arch=compute_100,code=compute_100")
    assert parsed[1].flags == ("-gencode", "arch=compute_90a,code=sm_90a")
    for text in ("", "hopper", "90b", "90a;120a", "90a+sass"):
        with pytest.raises(BadInput, match="is no architecture"):
            parse_architectures(text)


def test_default_covers_every_chip_since_8() -> None:
    names = [a.name for a in parse_architectures(nvcc.DEFAULT_ARCHITECTURES)]
    assert names == ["sm_80", "sm_86", "sm_89", "sm_90a", "compute_100", "sm_100a", "sm_120a"]


def test_code_for_a_chip() -> None:
    assert nvcc.machine_architecture(8, 6) == Architecture("86")
    assert nvcc.machine_architecture(9, 0) == Architecture("90a")
    assert nvcc.machine_architecture(12, 0) == Architecture("120a")
