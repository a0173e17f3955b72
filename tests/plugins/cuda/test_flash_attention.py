"""`flash_attention`: the kernel under the emulator against the reference, alone and in company, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from plugins.checks import flash_attention as checks
from plugins.checks._flash_attention import E4M3, Setup, case_of, reference
from plugins.cuda.case import Case, Scale, raw_bytes, relative_error
from plugins.cuda.company import differences
from plugins.cuda.emulated import Build, check, run
from plugins.cuda.library import UNSUPPORTED
from tests.plugins.cuda.emulation import SMALL_UNDER_ASAN, wrong

OPERATORS = ("flash_attention",)
PLAIN = Build("plain", OPERATORS)


@SMALL_UNDER_ASAN
def test_kernel_gives_what_the_reference_gives(flavour: str, scale: str, seed: int) -> None:
    assert wrong(checks, OPERATORS, flavour, scale, seed) == {}


def test_chips_that_convert_e4m3_have_shapes_of_their_own() -> None:
    setups = [setup for setup in checks.setups(Scale.SMALL) if setup.dtype == E4M3]
    cases = [case_of(replace(setup, form=1), seed=10) for setup in setups]
    assert {case.tensors["query"].shape[2] for case in cases} >= {64, 112, 144}
    assert check(cases, PLAIN, compute_capability=90) == {}


def test_a_sequence_does_not_depend_on_the_others() -> None:
    for company in checks.companies(seed=4, requests=5):
        capability = max(80, company.alone.least_compute_capability)
        alone, among = run([company.alone, company.among], PLAIN, compute_capability=capability)
        assert differences(company, alone.tensors, among.tensors) == []
        rows_alone, rows_among = company.rows["output"]
        one = alone.tensors["log_sum_exp"][:, rows_alone]
        assert torch.equal(raw_bytes(one), raw_bytes(among.tensors["log_sum_exp"][:, rows_among]))


def test_the_order_of_threads_changes_no_bit() -> None:
    case = case_of(Setup((70,), (97,), causal=True, alibi=True), seed=5)
    outputs = [run([case], PLAIN, seed=seed)[0].tensors["output"] for seed in (1, 2, 3)]
    assert all(torch.equal(raw_bytes(outputs[0]), raw_bytes(output)) for output in outputs[1:])


def without_a_feature(case: Case) -> Iterator[tuple[str, Case]]:
    """The call with one thing less, for each thing that it has."""
    for name in ("causal", "window_left", "window_right", "softcap", "scale"):
        off = -1 if name.startswith("window") else 0
        if case.attributes[name] != off:
            yield name, replace(case, attributes={**case.attributes, name: off})
    for name in case.tensors:
        if name in ("alibi_slopes", "bias", "head_sink") or name.endswith("_scale"):
            yield name, replace(case, tensors={k: v for k, v in case.tensors.items() if k != name})


@pytest.mark.parametrize("scale", [Scale.QUICK, Scale.SMALL])
def test_each_feature_of_each_case_matters(scale: Scale) -> None:
    """Else a kernel without it would be right too."""
    seen = set()
    for setup in checks.setups(scale):
        case = case_of(setup, seed=1)
        for feature, other in without_a_feature(case):
            got = reference(other.tensors, other.attributes, setup.output_dtype)
            changed = [
                name
                for name, want in case.expected.items()
                if relative_error(got[name], want) > 3 * case.tolerances.get(name, case.tolerance)
            ]
            assert changed, f"{case.name}: without {feature} the result is the same"
            seen.add(feature)
    if scale is Scale.SMALL:
        assert seen >= {"causal", "window_left", "window_right", "softcap", "scale", "alibi_slopes", "bias"}
        assert seen >= {"head_sink", "query_scale", "key_scale", "value_scale"}


def test_all_zero_scales_and_hidden_rows_give_no_nan() -> None:
    """Scores that are all the same, and rows whose every key a bias hides."""
    zero = case_of(Setup((3,), (40,), dtype=E4M3, causal=True), seed=6)
    tensors = {**zero.tensors, "key_scale": torch.zeros(1)}
    zero = replace(zero, tensors=tensors, expected=reference(tensors, zero.attributes, torch.float16))
    hidden = case_of(Setup((5,), (40,), bias="hq"), seed=7)
    bias = hidden.tensors["bias"].clone()
    bias[:, 1, 2] = -torch.inf
    tensors = {**hidden.tensors, "bias": bias}
    hidden = replace(hidden, tensors=tensors, expected=reference(tensors, hidden.attributes, torch.float16))
    assert bool((hidden.expected["output"][2, 1] == 0).all())
    assert check([zero, hidden], PLAIN) == {}


def test_nothing_to_do_is_no_error() -> None:
    for name, setup in (("no rows", Setup((0, 0))), ("no sequences", Setup((), padding=3))):
        assert check([replace(case_of(setup, seed=8), name=name)], PLAIN) == {}


@pytest.mark.parametrize(
    ("setup", "words"),
    [
        (Setup((3,), dtype=E4M3), "float8e4m3fn inputs need compute capability 8.9; this device has 8.0"),
        (Setup((3,), form=2), "form 2 needs a library with sm_90a, compute capability 9.0 (here 8.0)"),
    ],
)
def test_what_the_chip_lacks_is_told_apart(setup: Setup, words: str) -> None:
    (outcome,) = run([case_of(setup, seed=9)], PLAIN, compute_capability=80)
    assert outcome.code == UNSUPPORTED
    assert words in outcome.message
