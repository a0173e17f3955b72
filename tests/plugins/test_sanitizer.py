"""The kernels under the address and undefined-behaviour sanitizers, as a program of their own."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from plugins.cpu.build import COMMON_FLAGS, SOURCES, X86_FLAGS, find_compiler

UNITS = (
    "src/avx512.cpp",
    "src/avx512_vnni.cpp",
    "src/avx2.cpp",
    "src/plain.cpp",
    "test/sanitizer_main.cpp",
    "test/sanitize_elementwise.cpp",
    "test/sanitize_packed.cpp",
    "test/sanitize_quantized.cpp",
    "src/packed_plan.cpp",
    "src/plan.cpp",
    "src/dispatch.cpp",
)


def test_kernels_pass_the_sanitizers(tmp_path: Path) -> None:
    compiler = find_compiler()
    sanitizers = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    linked = subprocess.run(
        [*compiler.command, *sanitizers, str(probe), "-o", str(tmp_path / "probe")],
        capture_output=True,
        check=False,
    )
    if linked.returncode != 0:
        pytest.skip("this compiler has no sanitizer libraries")

    def compile_unit(unit: str) -> str:
        source = SOURCES / unit
        target = tmp_path / f"{source.stem}.o"
        flags = [
            flag for flag in COMMON_FLAGS if flag != "-O3"
        ]  # unoptimized: compiles in a fifth of the time
        flags += X86_FLAGS.get(source.stem, ()) if compiler.targets_x86 else ()
        flags += [*sanitizers, "-g1", f"-I{SOURCES / 'include'}", f"-I{SOURCES / 'kernels'}"]
        result = subprocess.run(
            [*compiler.command, *flags, "-c", str(source), "-o", str(target)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return str(target)

    with ThreadPoolExecutor() as pool:
        objects = list(pool.map(compile_unit, UNITS))
    program = tmp_path / "sanitizer_main"
    subprocess.run([*compiler.command, *sanitizers, *objects, "-o", str(program)], check=True)
    result = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "plain head_dim 64: largest error" in result.stdout
    assert "plain packed texts: largest error" in result.stdout
