"""What ptxas and the disassembler say of the built kernels: no local memory in hot ones, the right instructions."""

from __future__ import annotations

import pytest

from plugins.cuda import resources
from plugins.cuda.build import Build

WORDS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN7slipway6decodeI6__halfLi64EEEvNS_6ParamsE' for 'sm_90a'
ptxas info    : Function properties for _ZN7slipway6decodeI6__halfLi64EEEvNS_6ParamsE
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 16 bytes cumulative stack size, 1024 bytes smem, 400 bytes cmem[0]
ptxas info    : Compile time = 21.701 ms
ptxas info    : Compiling entry function '_ZN7slipway6decodeI6__halfLi64EEEvNS_6ParamsE' for 'sm_120a'
ptxas info    : Function properties for _ZN7slipway6decodeI6__halfLi64EEEvNS_6ParamsE
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for _ZN7slipway6helperEv
    32 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 400 bytes cmem[0]
"""


def test_report_is_read_kernel_by_kernel() -> None:
    hopper, blackwell = resources.parse("decode.cu", WORDS)
    name = "_ZN7slipway6decodeI6__halfLi64EEEvNS_6ParamsE"
    assert hopper == resources.KernelResources("decode.cu", name, "sm_90a", 168, 1024, 16, 8, 12)
    assert blackwell == resources.KernelResources("decode.cu", name, "sm_120a", 96, 0, 0, 0, 0)
    assert not hopper.is_clean
    assert blackwell.is_clean


def test_names_are_those_of_the_sources() -> None:
    for written, wanted in {
        "void slipway::(anonymous namespace)::decode<__half, (int)64>(slipway::Params)": "decode",
        "void slipway::flash<__nv_bfloat16, 128, slipway::Tag<float> >(CUtensorMap_st)": "flash",
        "doubled(float*)": "doubled",
        "_Z7doubledPf": "_Z7doubledPf",
    }.items():
        assert resources.template_name(written) == wanted


def test_spills_of_hot_kernels_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [
        resources.KernelResources("a.cu", "void hot<1>()", "sm_90a", 255, 0, 0, 8, 8),
        resources.KernelResources("a.cu", "void cold<1>()", "sm_90a", 32, 0, 64, 0, 0),
        resources.KernelResources("a.cu", "void fine<1>()", "sm_90a", 32, 0, 0, 0, 0),
    ]
    monkeypatch.setattr(resources, "COLD", {"cold": "runs once"})
    assert resources.in_local_memory(kernels) == [
        "void hot<1>() on sm_90a: 0 bytes of stack, 8 spilled, 8 loaded again"
    ]
    text = resources.table(
        [*kernels, resources.KernelResources("a.cu", "void fine<2>()", "sm_90a", 40, 0, 0, 0, 0)], "1"
    )
    assert "| `a.cu` | `fine` | 2 | 32 to 40 |" in text
    assert "| `a.cu` | `hot` | 1 | 255, 16 B local |" in text
    assert "* `cold`: runs once" in text


def test_hot_kernels_keep_out_of_local_memory(kernels: Build) -> None:
    assert resources.in_local_memory(resources.resources_of(kernels)) == []
