"""What ptxas and the disassembler say of the built kernels: no local memory in hot ones, the right instructions."""

from __future__ import annotations

import json

import pytest

from model_repo.runtime.errors import BadInput
from plugins.cuda import resources, sass
from plugins.cuda.build import Build
from plugins.cuda.nvcc import DEFAULT_ARCHITECTURES, parse_architectures

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
    assert hopper.local_bytes == 36
    assert blackwell.local_bytes == 0


def test_names_are_those_of_the_sources() -> None:
    for written, wanted in {
        "void slipway::(anonymous namespace)::decode<__half, (int)64>(slipway::Params)": "decode",
        "void slipway::flash<__nv_bfloat16, 128, slipway::Tag<float> >(CUtensorMap_st)": "flash",
        "doubled(float*)": "doubled",
        "_Z7doubledPf": "_Z7doubledPf",
    }.items():
        assert resources.template_name(written) == wanted


def test_local_memory_is_reported() -> None:
    kernels = [
        resources.KernelResources("a.cu", "void hot<1>()", "sm_90a", 255, 0, 0, 8, 8),
        resources.KernelResources("a.cu", "void array<1>()", "sm_90a", 32, 0, 64, 0, 0),
        resources.KernelResources("a.cu", "void fine<1>()", "sm_90a", 32, 0, 0, 0, 0),
    ]
    assert resources.in_local_memory(kernels) == [
        "void hot<1>() on sm_90a: 0 bytes of stack, 8 spilled, 8 loaded again",
        "void array<1>() on sm_90a: 64 bytes of stack, 0 spilled, 0 loaded again",
    ]
    text = resources.table(
        [*kernels, resources.KernelResources("a.cu", "void fine<2>()", "sm_90a", 40, 0, 0, 0, 0)], "1"
    )
    assert "| `a.cu` | `fine` | 2 | 32 to 40 |" in text
    assert "| `a.cu` | `hot` | 1 | 255, 16 B local |" in text


def test_kernels_keep_out_of_local_memory(kernels: Build) -> None:
    assert resources.in_local_memory(resources.resources_of(kernels)) == []


TILES = ("LDGSTS", "LDSM", "HMMA|QMMA|IMMA")
"""cp.async into shared memory, ldmatrix out of it, and mma.sync."""

WANTED = {
    "flash_attention_sm90_kernel": ("UTMALDG", "SYNCS"),  # TMA, mbarrier
    "flash_attention_kernel": TILES,
    "paged_attention_kernel": TILES,
    "weight_only_gemm_kernel": TILES,
}
"""Instructions that each kernel's machine code must have, by its template; one of those between bars."""

PRODUCTS = {False: ("HGMMA",), True: ("QGMMA", "LDSM", "STSM")}
"""WGMMA in `flash_attention_sm90_kernel`: of 16 bits, and (True) of E4M3, with what transposes the values."""

SERIALIZED = "wgmma.mma_async instructions are serialized"
"""ptxas where it could not leave products under way: nothing would overlap with them."""


EMPTY = 64
"""A kernel of fewer instructions is one that this chip has another form for; its body is left out."""


@pytest.mark.parametrize("architecture", ["sm_90a", "sm_120a"])
def test_machine_code_uses_the_chip(kernels: Build, architecture: str) -> None:
    """Matrix and copy instructions where they belong, and no access to local memory."""
    try:
        sass.find_disassembler()
    except BadInput as error:
        pytest.skip(str(error))
    wrong = []
    seen = set()
    for unit in kernels.units:
        listed = {k.kernel for k in resources.parse(unit.unit, unit.ptxas) if k.architecture == architecture}
        names = resources.demangled(listed)
        if not any(resources.template_name(name) in WANTED for name in names.values()):
            continue
        for kernel, counts in sass.instructions(unit.object_file, architecture).items():
            template = resources.template_name(names.get(kernel, kernel))
            if counts.total() < EMPTY:
                continue
            seen.add(template)
            wanted = WANTED.get(template, ())
            if template == "flash_attention_sm90_kernel":
                is_e4m3 = "e4m3" in names[kernel]
                wanted += PRODUCTS[is_e4m3]
                wrong += [f"{names[kernel]}: {op}" for op in PRODUCTS[not is_e4m3] if counts[op]]
            for choice in wanted:
                if not any(counts[opcode] for opcode in choice.split("|")):
                    wrong.append(f"{names[kernel]}: no {choice}")
            if counts["LDL"] or counts["STL"]:
                wrong.append(f"{names.get(kernel, kernel)}: {counts['LDL']} LDL, {counts['STL']} STL")
    assert wrong == []
    only_hopper = {"flash_attention_sm90_kernel"}
    assert set(WANTED) - (only_hopper if architecture != "sm_90a" else set()) <= seen


def test_products_of_warpgroups_are_left_under_way(kernels: Build) -> None:
    with_wgmma = [unit for unit in kernels.units if unit.unit.endswith("_sm90.cu")]
    assert with_wgmma
    assert [unit.unit for unit in with_wgmma if SERIALIZED in unit.ptxas] == []


def test_committed_report_names_the_kernels_there_are(kernels: Build) -> None:
    """RESOURCES.md and resources.json; `python -m plugins.cuda.resources` writes them."""
    record = json.loads(resources.JSON_FILE.read_text(encoding="utf-8"))
    assert record["architectures"] == [a.name for a in parse_architectures(DEFAULT_ARCHITECTURES)]
    listed = {(k["unit"], resources.template_name(k["kernel"])) for k in record["kernels"]}
    there = {(k.unit, k.template) for k in resources.resources_of(kernels)}
    assert listed == there, "run python -m plugins.cuda.resources"
    table = resources.TABLE_FILE.read_text(encoding="utf-8")
    assert all(f"| `{unit}` | `{name}` |" in table for unit, name in listed)
    assert resources.in_local_memory(resources.KernelResources(**k) for k in record["kernels"]) == []
