"""`weight_only_gemm`: the kernels under the emulator against the reference; rows alone and in company; splits."""

from __future__ import annotations

import pytest
import torch

from plugins.checks import weight_only_gemm as checks
from plugins.checks.weight_only_gemm import Setup, case_of
from plugins.cuda.case import raw_bytes
from plugins.cuda.emulated import Build, run
from plugins.cuda.library import Library
from tests.plugins.cuda.emulation import QUICK_UNDER_ASAN, dependent, wrong

OPERATORS = ("weight_only_gemm",)


@QUICK_UNDER_ASAN
def test_the_kernel_gives_what_the_reference_gives(flavour: str, scale: str, seed: int) -> None:
    assert wrong(checks, OPERATORS, flavour, scale, seed, half_suffices=True) == {}


@pytest.mark.parametrize("requests", [9, 20])
def test_a_row_does_not_depend_on_the_others(requests: int) -> None:
    assert dependent(checks, OPERATORS, requests) == []


def test_the_order_of_threads_does_not_matter() -> None:
    case = case_of(Setup(rows=5, k=2240, n=192, group=128), 5)
    build = Build("plain", OPERATORS)
    (one,), (other,) = (run([case], build, seed=seed) for seed in (1, 2))
    assert torch.equal(raw_bytes(one.tensors["y"]), raw_bytes(other.tensors["y"]))


def test_k_is_split_until_a_large_device_is_full() -> None:
    """Splits show in the workspace: float32 parts of rows by the padded n."""
    library = Library(Build("plain", OPERATORS).library())
    for k, n, splits in (
        (4096, 14336, 2),
        (14336, 4096, 5),
        (4096, 4096, 4),  # 16 stages of 256: no more than 4 splits of 4
        (4096, 28672, 1),
        (512, 64, 1),
    ):
        tensors = {
            "x": torch.empty(16, k, dtype=torch.float16),
            "weight": torch.empty(n // 64, k // 64, 2048, dtype=torch.uint8),
            "scale": torch.empty(n // 64, k // 128, 64, dtype=torch.float16),
            "y": torch.empty(16, n, dtype=torch.float16),
        }
        wanted = 0 if splits == 1 else splits * 16 * n * 4
        assert library.workspace_bytes("weight_only_gemm", tensors, {"group": 128}) == wanted
