"""`flash_attention` in its form for sm_90a under the emulator: the cases of the other form, and rings that wrap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from plugins.checks import flash_attention as checks
from plugins.checks._flash_attention import E4M3, Setup, case_of, reference
from plugins.cuda.case import Case, Scale, raw_bytes
from plugins.cuda.company import differences
from plugins.cuda.emulated import Build, check, run

SM90 = 90
OPERATORS = ("flash_attention",)
UNITS = {
    "half": "flash_attention_sm90.cu",
    "e4m3": "flash_attention_fp8_sm90.cu",
}
"""Where the form is compiled, for inputs of 16 bits and of E4M3."""

OTHER_FORMS = ("flash_attention_half.cu", "flash_attention_fp8.cu")
SMALL = ("SLIPWAY_MAX_HEAD_SIZE=64", "SLIPWAY_ONLY_FLOAT16")


def build_of(kind: str, flavour: str, *defines: str) -> Build:
    """The form without those for other chips and for the other kind of inputs, which take longer to compile."""
    others = tuple(unit for name, unit in UNITS.items() if name != kind)
    return Build(flavour, OPERATORS, defines=("SLIPWAY_ARCH_90A", *defines), left_out=(*OTHER_FORMS, *others))


PLAIN = {kind: build_of(kind, "plain") for kind in UNITS}
both_kinds = pytest.mark.parametrize("kind", list(UNITS))


def long() -> Iterator[Setup]:
    """More key tiles than a ring has stages, several tiles of rows, in each compiled head size."""
    half, brain = torch.float16, torch.bfloat16
    yield Setup((200, 70), (530, 300), causal=True, padding=3)
    yield Setup((100,), (700,), kv_heads=2, window_left=150, window_right=300, softcap=3.0, dtype=brain)
    yield Setup((65,), (384,), heads=4, kv_heads=2, packed=False, alibi=True, sink=True)  # whole tiles alone
    yield Setup((150,), (390,), head_dim=128, causal=True, dtype=half)
    yield Setup((40,), (650,), head_dim=128, value_dim=72, heads=1, dtype=brain)
    yield Setup((70,), (250,), head_dim=256, causal=True, heads=1, dtype=half)


def as_kind(setup: Setup, kind: str) -> Setup:
    """The call with inputs of E4M3 and an output of what they were; sizes then are multiples of 16 bytes too."""
    if kind == "half" or setup.dtype == E4M3:
        return setup
    head_dim, value_dim = (-(-size // 16) * 16 for size in (setup.head_dim, setup.value_dim))
    return replace(setup, dtype=E4M3, output=setup.dtype, head_dim=head_dim, value_dim=value_dim)


def cases(setups: Iterator[Setup], kind: str, seed: int, small: bool = False) -> list[Case]:
    """The calls, in this form; small: those that a `SMALL` build takes."""
    taken = []
    for setup in setups:
        taken.append(replace(as_kind(setup, kind), form=2))
        large = setup.output_dtype != torch.float16 or max(setup.head_dim, setup.value_dim) > 64
        if (kind == "half" and setup.dtype == E4M3) or (small and large):
            taken.pop()
    return [case_of(setup, seed * 1000 + number) for number, setup in enumerate(taken)]


@both_kinds
def test_form_gives_what_the_reference_gives(kind: str) -> None:
    for listed in (cases(checks.setups(Scale.SMALL), kind, seed=1), cases(long(), kind, seed=2)):
        assert check(listed, PLAIN[kind], seed=1, compute_capability=SM90) == {}


@both_kinds
@pytest.mark.parametrize("flavour", ["asan", "tsan"])
def test_sanitizers_find_nothing(flavour: str, kind: str) -> None:
    listed = cases(checks.setups(Scale.QUICK), kind, seed=3, small=True)
    listed += cases(long(), kind, seed=4, small=True)[:1]
    build = build_of(kind, flavour, *SMALL)
    assert check(listed, build, seed=3, compute_capability=SM90) == {}


@both_kinds
def test_a_sequence_does_not_depend_on_the_others(kind: str) -> None:
    companies = [
        company
        for company in checks.companies(seed=4, requests=5)
        if (company.alone.tensors["query"].dtype == E4M3) == (kind == "e4m3")
    ]
    assert companies
    for company in companies:
        form = {"form": 2.0}
        calls = [replace(c, attributes={**c.attributes, **form}) for c in (company.alone, company.among)]
        alone, among = run(calls, PLAIN[kind], compute_capability=SM90)
        assert differences(company, alone.tensors, among.tensors) == []


@both_kinds
def test_what_lies_beside_a_sequence_is_not_seen(kind: str) -> None:
    """Tiles are read past the end of a sequence: with no number there, and with infinity, which E4M3 has not."""
    case = case_of(as_kind(Setup((20, 30), (71, 200), form=2), kind), seed=5)
    (before,) = run([case], PLAIN[kind], compute_capability=SM90)
    tensors = {name: tensor.clone() for name, tensor in case.tensors.items()}
    for name, begin, end in (("key", 71, 271), ("value", 71, 171), ("value", 171, 271)):
        poison = torch.inf if begin == 171 and kind == "half" else torch.nan
        tensors[name][begin:end] = torch.full((), poison).to(tensors[name].dtype)
    (after,) = run([replace(case, tensors=tensors)], PLAIN[kind], compute_capability=SM90)
    assert torch.equal(raw_bytes(before.tensors["output"][:20]), raw_bytes(after.tensors["output"][:20]))
    assert not bool(torch.isfinite(after.tensors["output"][20:]).any())


@both_kinds
def test_the_order_of_threads_changes_no_bit(kind: str) -> None:
    case = case_of(as_kind(Setup((130,), (300,), causal=True, alibi=True, form=2), kind), seed=6)
    outputs = [
        run([case], PLAIN[kind], seed=seed, compute_capability=SM90)[0].tensors["output"]
        for seed in (1, 2, 3)
    ]
    assert all(torch.equal(raw_bytes(outputs[0]), raw_bytes(output)) for output in outputs[1:])


@both_kinds
def test_the_form_is_chosen_on_its_chip_alone(kind: str) -> None:
    """Where no form is asked for, too: the others are not compiled here."""
    case = case_of(as_kind(Setup((9,), form=0), kind), seed=7)
    assert check([case], PLAIN[kind], compute_capability=SM90) == {}
    asked = replace(case, attributes={**case.attributes, "form": 2})
    for capability in (89, 100) if kind == "e4m3" else (80, 89, 100):
        (refused,) = run([asked], PLAIN[kind], compute_capability=capability)
        assert "form 2 needs" in refused.message


def test_e4m3_without_scales_and_with_zeros_gives_no_nan() -> None:
    """A scale that is not given is 1; scores that are all the same."""
    case = case_of(Setup((20,), (200,), dtype=E4M3, causal=True, form=2), seed=8)
    bare = {name: tensor for name, tensor in case.tensors.items() if not name.endswith("_scale")}
    zero = {**case.tensors, "key_scale": torch.zeros(1)}
    calls = [
        replace(case, name=name, tensors=given, expected=reference(given, case.attributes, torch.float16))
        for name, given in (("no scales", bare), ("zeros", zero))
    ]
    assert check(calls, PLAIN["e4m3"], compute_capability=SM90) == {}
