"""`flash_attention` in its form for sm_90a under the emulator: the cases of the other form, and rings that wrap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from plugins.checks import flash_attention as checks
from plugins.checks.flash_attention import E4M3, Setup, case_of
from plugins.cuda.case import Case, Scale, raw_bytes
from plugins.cuda.company import differences
from plugins.cuda.emulated import Build, check, run

SM90 = 90
OPERATORS = ("flash_attention",)
OTHER_FORMS = ("flash_attention_half.cu", "flash_attention_fp8.cu")


SMALL = ("SLIPWAY_MAX_HEAD_SIZE=64", "SLIPWAY_ONLY_FLOAT16")


def build_of(flavour: str, *defines: str) -> Build:
    """The form without those for other chips, which take longer to compile."""
    return Build(flavour, OPERATORS, defines=("SLIPWAY_ARCH_90A", *defines), left_out=OTHER_FORMS)


PLAIN = build_of("plain")


def long() -> Iterator[Setup]:
    """More key tiles than a ring has stages, several tiles of rows, in each compiled head size."""
    half, brain = torch.float16, torch.bfloat16
    yield Setup((200, 70), (530, 300), causal=True, padding=3)
    yield Setup((100,), (700,), kv_heads=2, window_left=150, window_right=300, softcap=3.0, dtype=brain)
    yield Setup((65,), (384,), heads=4, kv_heads=2, packed=False, alibi=True, sink=True)  # whole tiles alone
    yield Setup((150,), (390,), head_dim=128, causal=True, dtype=half)
    yield Setup((40,), (650,), head_dim=128, value_dim=72, heads=1, dtype=brain)
    yield Setup((70,), (250,), head_dim=256, causal=True, heads=1, dtype=half)


def cases(setups: Iterator[Setup], seed: int, small: bool = False) -> list[Case]:
    """The calls that this form takes, in this form; small: those that a `SMALL` build takes."""
    taken = [
        s
        for s in setups
        if s.dtype != E4M3 and not (small and (s.dtype != torch.float16 or max(s.head_dim, s.value_dim) > 64))
    ]
    return [case_of(replace(s, form=2), seed * 1000 + number) for number, s in enumerate(taken)]


def test_form_gives_what_the_reference_gives() -> None:
    for listed in (cases(checks.setups(Scale.SMALL), seed=1), cases(long(), seed=2)):
        assert check(listed, PLAIN, seed=1, compute_capability=SM90) == {}


@pytest.mark.parametrize("flavour", ["asan", "tsan"])
def test_sanitizers_find_nothing(flavour: str) -> None:
    listed = [*cases(checks.setups(Scale.QUICK), seed=3, small=True), *cases(long(), seed=4, small=True)[:1]]
    assert check(listed, build_of(flavour, *SMALL), seed=3, compute_capability=SM90) == {}


def test_a_sequence_does_not_depend_on_the_others() -> None:
    for company in checks.companies(seed=4, requests=5):
        form = {"form": 2.0}
        calls = [replace(c, attributes={**c.attributes, **form}) for c in (company.alone, company.among)]
        alone, among = run(calls, PLAIN, compute_capability=SM90)
        assert differences(company, alone.tensors, among.tensors) == []


def test_what_lies_beside_a_sequence_is_not_seen() -> None:
    """Tiles are read past the end of a sequence: with no number there, and with infinity."""
    case = case_of(Setup((20, 30), (70, 200), form=2), seed=5)
    (before,) = run([case], PLAIN, compute_capability=SM90)
    tensors = {name: tensor.clone() for name, tensor in case.tensors.items()}
    tensors["key"][70:], tensors["value"][70:170], tensors["value"][170:] = torch.nan, torch.nan, torch.inf
    (after,) = run([replace(case, tensors=tensors)], PLAIN, compute_capability=SM90)
    assert torch.equal(raw_bytes(before.tensors["output"][:20]), raw_bytes(after.tensors["output"][:20]))
    assert not bool(torch.isfinite(after.tensors["output"][20:]).any())


def test_the_order_of_threads_changes_no_bit() -> None:
    case = case_of(Setup((130,), (300,), causal=True, alibi=True, form=2), seed=6)
    outputs = [
        run([case], PLAIN, seed=seed, compute_capability=SM90)[0].tensors["output"] for seed in (1, 2, 3)
    ]
    assert all(torch.equal(raw_bytes(outputs[0]), raw_bytes(output)) for output in outputs[1:])


def test_the_form_is_chosen_on_its_chip_alone() -> None:
    case = case_of(Setup((9,), form=0), seed=7)
    assert check([case], PLAIN, compute_capability=SM90) == {}
    asked = replace(case, attributes={**case.attributes, "form": 2})
    for capability in (80, 89, 100):
        (refused,) = run([asked], PLAIN, compute_capability=capability)
        assert "form 2 needs" in refused.message
