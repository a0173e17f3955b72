"""The build of the CPU library: cached by content, one clear error without a compiler, other processors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model_repo.runtime.errors import BadInput, SlipwayError
from plugins.cpu import build


def test_second_call_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.library_path()
    build._library.cache_clear()  # as in a new process

    def compile_nothing(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(build, "_compile", compile_nothing)
    assert build.library_path() == path
    assert path.name == "libslipway_cpu.so"


def test_no_compiler_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=r"'g\+\+' is not on the PATH.*apt-get install g\+\+"):
        build.library_path()


def test_entry_without_compiler_exits_2(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "plugins.cpu.build"],
        env={**os.environ, "CXX": str(tmp_path / "no-such-compiler")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "no C++ compiler" in result.stderr
    assert "Traceback" not in result.stderr


def test_failing_compiler_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A compiler that runs but fails: its own words come through, and no library is left behind."""
    compiler = tmp_path / "c++"
    compiler.write_text(
        '#!/bin/sh\ncase "$1" in --version) echo "broken 1.0";; -dumpmachine) echo x86_64;;\n'
        '*) echo "cannot compile this" >&2; exit 1;; esac\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(build, "_cache_folder", lambda: tmp_path / "cache")
    with pytest.raises(SlipwayError, match="failed with exit code 1:\ncannot compile this"):
        build.library_path()
    assert not list((tmp_path / "cache").rglob("*.so"))
    assert not list((tmp_path / "cache").rglob("objects-*"))


def test_user_cache_is_used_where_the_package_is_read_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocked = tmp_path / "package"
    blocked.write_text("a file, so that no folder can be made below it")
    monkeypatch.setattr(build, "SOURCES", blocked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert build._cache_folder() == tmp_path / "cache" / "slipway"


def test_header_folder_must_hold_the_header(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds no onnxruntime_c_api\.h"):
        build.library_path(tmp_path)


def test_library_needs_no_cpp_runtime_of_its_own() -> None:
    """libstdc++ is linked in: the serving container may have an older one."""
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("no readelf here")
    dynamic = subprocess.run(
        [readelf, "-d", build.library_path()], capture_output=True, text=True, check=True
    )
    assert "libstdc++" not in dynamic.stdout


def test_sources_compile_for_aarch64() -> None:
    """Every unit passes the cross compiler; there the plain kernels run on NEON vectors."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("no aarch64-linux-gnu-g++ here")
    units = [source for source in build._sources() if source.suffix == ".cpp" and source.stem != "ort_check"]
    includes = [f"-I{build.SOURCES / part}" for part in ("include", "kernels")]

    def compile_unit(unit: Path) -> subprocess.CompletedProcess[str]:
        command = [
            compiler,
            "-std=c++17",
            "-Wall",
            "-Wextra",
            "-Werror",
            *includes,
            "-fsyntax-only",
            str(unit),
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor() as pool:
        for result in pool.map(compile_unit, units):
            assert result.returncode == 0, result.stderr
