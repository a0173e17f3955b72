"""The emulator of CUDA: each primitive against its definition, and each kind of misuse seen.

The programs print a line a check. Those of misuse.cu are wrong on purpose; WORDS says who must see what.
"""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from plugins.cuda.emulated import Build

from .programs import FOLDER, results


def test_number_formats_follow_their_definitions() -> None:
    found = results("numbers", "asan", 1)
    assert len(found) == 9
    assert {name: words for name, words in found.items() if words != "ok"} == {}


@pytest.mark.parametrize("seed", [1, 2])
def test_primitives_follow_their_definitions(seed: int) -> None:
    found = results("primitives", "asan", seed)
    assert len(found) == 25
    assert {name: words for name, words in found.items() if words != "ok"} == {}


def test_machines_without_the_assembly_switch_stacks_by_ucontext() -> None:
    build = Build("plain", (), defines=("EMU_UCONTEXT",))
    run = subprocess.run(
        [str(build.program(FOLDER / "primitives.cu")), "1"], capture_output=True, text=True, check=True
    )
    assert [line for line in run.stdout.splitlines() if not line.endswith("\tok")] == []


def test_the_thread_sanitizer_finds_nothing_but_missing_fences_and_waits() -> None:
    found = results("primitives", "tsan", 1)
    assert {name: words for name, words in found.items() if words != "ok"}.keys() == {"the end"}
    assert len(found) == 23
    for name in ("no fence before", "no fence after", "no wait for the kernel before"):
        assert "data race" in results("primitives", "tsan", 2, name)[name]


EMULATOR = {
    "barrier of half the block": "deadlock:   threads 0-31 wait in __syncthreads at",
    "barrier in two places": "__syncthreads: other threads of the block wait in one at",
    "threads end before the barrier": "threads 32-63 have ended",
    "endless wait": "__nanosleep: what it waits for never happens",
    "other operation": "other lanes of the warp wait in",
    "other mask": "or use another mask",
    "not in the mask": "the calling lane is not in its mask",
    "beyond the mask": "__shfl_sync: reads a lane outside the mask",
    "a lane is gone": "wait in __shfl_xor_sync at",
    "31 lanes multiply": "wait in mma.sync at",
    "misaligned matrix": "ldmatrix: row not 16-byte aligned",
    "matrix outside": "ldmatrix: row outside shared memory",
    "too large an array": "shared arrays of 52032 bytes are too large",
    "copy not waited for": "cp.async not waited for before the thread ends",
    "copy not committed": "cp.async not waited for before the thread ends",
    "wait one group short": "cp.async not waited for before the thread ends",
    "two copies to one place": "cp.async: another copy of this group writes this address",
    "misaligned copy": "cp.async: misaligned",
    "copy to global memory": "cp.async: destination outside shared memory",
    "device check": "index is beyond the table",
}
"""Seen by the emulator itself, in every build."""

ADDRESS = {
    "behind dynamic memory": "heap-buffer-overflow",
    "before dynamic memory": "heap-buffer-overflow",
    "behind an array": "heap-buffer-overflow",
    "misaligned vector": "misaligned address",
    "copy beyond the source": "heap-buffer-overflow",
}
THREAD = (
    "no barrier",
    "no syncwarp",
    "blocks write one place",
    "blocks with barriers write one place",
    "no barrier after a copy",
)


def test_the_emulator_sees_misuse() -> None:
    found = results("misuse", "asan", 3, "none", *EMULATOR)
    assert found.pop("none") == "ok"
    assert found.keys() == EMULATOR.keys()
    assert {name: found[name] for name, words in EMULATOR.items() if words not in found[name]} == {}
    assert all("seed 3" in words for words in found.values())


def test_the_address_sanitizer_sees_misuse() -> None:
    with ThreadPoolExecutor(2) as pool:
        found = dict(
            zip(ADDRESS, pool.map(lambda n: results("misuse", "asan", 1, n)[n], ADDRESS), strict=True)
        )
    assert {name: found[name] for name, words in ADDRESS.items() if words not in found[name]} == {}


def test_the_thread_sanitizer_sees_misuse_whatever_the_order() -> None:
    assert results("misuse", "tsan", 1, "none") == {"none": "ok"}
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(THREAD, pool.map(lambda n: results("misuse", "tsan", 1, n)[n], THREAD), strict=True))
    assert {name: words for name, words in found.items() if "data race" not in words} == {}


def test_shared_arrays_of_cuda_itself_are_refused() -> None:
    source = '#include "slipway/ptx.cuh"\n__global__ void kernel() { __shared__ int x[4]; x[0] = 1; }\n'
    folder = Build().folder
    run = subprocess.run(
        [
            "g++",
            "-std=c++17",
            "-fsyntax-only",
            f"-I{folder}/include",
            f"-I{folder}/emulator",
            "-x",
            "c++",
            "-",
        ],
        input=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "DYNAMIC_SMEM" in run.stderr
