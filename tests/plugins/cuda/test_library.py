"""The built library where there is no GPU: what it says of itself, and how a call fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from plugins.checks import flash_attention, paged_attention, weight_only_gemm
from plugins.cuda import ledger, results
from plugins.cuda.build import Build
from plugins.cuda.case import Scale
from plugins.cuda.library import CUDA, Library
from plugins.cuda.results import Gpu, Results, SanitizerReport
from plugins.cuda.shapes import DTYPES_BY_NAME
from plugins.cuda.units import all_units, operators_of

OPERATORS = sorted(name for unit in all_units() for name in operators_of(unit))


def test_info_needs_no_driver(kernels: Build) -> None:
    info = Library(kernels.library).info
    assert info["build_hash"] == kernels.build_hash
    assert info["architectures"] == ["sm_90a", "sm_120a"]
    assert info["operators"] == OPERATORS
    assert info["version"] not in ("", "unversioned")


def test_descriptions_need_no_driver(kernels: Build) -> None:
    library = Library(kernels.library)
    for operator in OPERATORS:
        description = library.describe(operator)
        assert description.name == operator
        assert description.tensors
        known = {*description.types, *DTYPES_BY_NAME}
        assert {t.type for t in description.tensors} <= known
        assert all(a.min <= a.default <= a.max for a in description.attributes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_call_without_a_gpu_fails_in_words(kernels: Build) -> None:
    """In a process of its own, which must live through it."""
    code = f"""
import torch
from pathlib import Path
from plugins.cuda.library import KernelError, Library
x = torch.ones(4, 64, dtype=torch.float16)
try:
    Library(Path({str(kernels.library)!r})).run("gated_activation", {{"gate_up": x, "output": x[:, :32].contiguous()}})
except KernelError as error:
    print(error.code, error)
"""
    root = Path(ledger.FOLDER).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.strip()
    assert words.startswith(f"{CUDA} gated_activation: no CUDA device: "), done.stdout + done.stderr
    assert "CUDA" in words.removeprefix(f"{CUDA} gated_activation: no CUDA device: ") or "driver" in words


def test_every_operator_is_in_the_documents(emulated_library: Path) -> None:
    """plugins/README.md and OPERATORS.md hold what the library says; `python -m plugins.cuda.ledger` writes them."""
    library = Library(emulated_library)
    assert library.info["operators"] == OPERATORS
    for path, wanted in ledger.documents(library, results.read_all()).items():
        assert path.read_text(encoding="utf-8") == wanted, f"{path.name}: run python -m plugins.cuda.ledger"


def test_forms_are_of_operators_and_their_tests_exist() -> None:
    root = Path(ledger.FOLDER).parent.parent
    assert {form.operator for form in ledger.FORMS} <= set(OPERATORS)
    for form in ledger.forms(OPERATORS):
        assert not form.emulated_by or (root / form.emulated_by).is_file(), form


def test_cases_of_every_form_are_among_those_of_a_gpu() -> None:
    """Else the ledger would say "never run" for ever. Names alone: the cases themselves take minutes to make."""
    names = {
        "flash_attention": [
            setup.name + form for setup in flash_attention.setups(Scale.FULL) for form in ("", " form=1")
        ],
        "paged_attention": [setup.name for setup in (*paged_attention.SMALL, *paged_attention.full())],
        "weight_only_gemm": [setup.name for setup in weight_only_gemm.full_setups()],
    }
    for form in ledger.FORMS:
        if form.cases:
            assert any(re.search(form.cases, name) for name in names[form.operator]), form


def seen(
    capability: int, problems: tuple[str, ...] = (), tool: str = "clean", date: str = "2030-01-02"
) -> Results:
    check = {"operator": "toy", "case": "odd", "problems": list(problems), "errors": {"output": 0.0}}
    return Results(
        date=f"{date}T00:00:00+00:00",
        commit="abc",
        gpu=Gpu(f"Chip {capability}", capability, 132, 1, 1, ""),
        versions={},
        build={},
        operators=("toy",),
        checks=(check,),
        sanitizer=(SanitizerReport("toy", "racecheck", tool),),
        ceilings={},
        measurements=(),
        dropped=(),
        seconds={},
        verdict="right",
    )


def test_ledger_says_what_was_seen_and_nothing_more() -> None:
    common = ledger.Form("toy", "one form", "tests/plugins/cuda/test_toy.py")
    hopper = ledger.Form("toy", "Hopper", least=90, most=90)
    assert ledger.state(hopper, []) == "never run"
    assert ledger.state(common, []).startswith(
        "correct under emulation (`tests/plugins/cuda/test_toy.py`); never run"
    )
    assert ledger.state(hopper, [seen(80)]) == "never run"
    assert ledger.state(hopper, [seen(90)]) == "correct on: Chip 90, 2030-01-02, abc (1 cases)"
    assert ledger.state(common, [seen(90), seen(80)]).count("correct on") == 2
    assert ledger.state(common, [seen(90, ("bad",))]).startswith("WRONG on: Chip 90")
    assert ledger.state(common, [seen(90, tool="errors")]).startswith("WRONG on: Chip 90")
    # The latest run on a chip counts.
    assert ledger.state(common, [seen(90, ("bad",)), seen(90, date="2030-02-02")]).startswith("correct on")
    other = ledger.Form("toy", "8 bit", cases="e4m3")
    assert ledger.state(other, [seen(90)]) == "never run"


def test_parts_of_a_document_are_replaced() -> None:
    text = "a\n<!-- x -->\nold\n<!-- end of x -->\nb\n"
    once = ledger.with_parts(text, {"x": "new"})
    assert once == "a\n<!-- x -->\n\nnew\n\n<!-- end of x -->\nb\n"
    assert ledger.with_parts(once, {"x": "new"}) == once
    with pytest.raises(ValueError, match="one part"):
        ledger.with_parts(text, {"y": "new"})
