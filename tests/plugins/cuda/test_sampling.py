"""`sampling`: the kernels under the emulator against the reference, the reference against the CPU runtime's sampler."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from model_repo.runtime.philox import uniform
from model_repo.runtime.request import SamplingParams
from model_repo.runtime.sampler import Row, sample
from plugins.checks import sampling as checks
from plugins.checks import token_counts as count_checks
from plugins.cuda.case import Scale
from plugins.cuda.emulated import Build, check
from plugins.reference.sampling import (
    WEIGHT_BITS,
    Parameters,
    adjusted_row,
    distribution,
    draw,
    log_probs,
    margin,
    parameters_of,
    philox_word,
    token_counts,
    weights_of,
)
from tests.plugins.cuda.emulation import dependent

OPERATORS = ("sampling",)
CLEAR = 2e-6
"""Share of the mass that float32 weights may be wrong by."""


@pytest.mark.parametrize(
    ("flavour", "scale", "seed", "defines"),
    [
        ("plain", "small", 1, ()),
        ("asan", "small", 2, ()),
        ("tsan", "quick", 3, ("SLIPWAY_SAMPLING_GROUPS=64",)),  # so few that several lanes share one
    ],
)
def test_kernels_give_what_the_reference_gives(
    flavour: str, scale: str, seed: int, defines: tuple[str, ...]
) -> None:
    build = Build(flavour, OPERATORS, defines=defines)
    assert check(checks.cases(Scale(scale), seed), build, seed=seed) == {}


def test_a_row_does_not_depend_on_the_others() -> None:
    assert dependent(checks, OPERATORS) == []


def test_cases_choose_by_more_than_the_largest_logit() -> None:
    """A kernel that ignored parameters and random numbers would not pass."""
    others = total = 0
    for case in checks.cases(Scale.SMALL, 1):
        if case.error is None:
            logits, token = case.tensors["logits"].float(), case.expected["token"]
            others += int((token != logits.argmax(dim=1) if len(token) else token).count_nonzero())
            total += len(token)
    assert total > 100
    assert others > 0.4 * total


@pytest.mark.parametrize("kind", checks.LOGITS)
@pytest.mark.parametrize("vocab", [5, 257, 3000])
def test_the_reference_is_the_runtime(kind: str, vocab: int) -> None:
    """The same token for the same logits, seed and position, wherever rounding does not decide."""
    generator = torch.Generator().manual_seed(vocab)
    clear = compared = 0
    for place, filters in enumerate(checks.FILTERS):
        given = checks.DEFAULTS | filters
        if given["top_p"] == 0 or given["temperature"] < 1e-38:
            continue  # the runtime refuses the first; it divides by the second as a subnormal number
        logits = checks.row_of(kind, vocab, generator)
        seen = torch.randperm(vocab, generator=generator)[: vocab // 4] if place % 3 == 0 else None
        penalty = 1.0 if seen is None else 1.5
        seed, position = 2**63 + 12345 * place, 77 * place
        values: dict[str, float] = {**given, "top_k": int(given["top_k"])}
        params = SamplingParams(**values, repetition_penalty=penalty)  # type: ignore[arg-type]
        row = Row(params, seed, position, None if seen is None else seen.sort().values.numpy())
        (sampled,) = sample(logits.numpy()[None], [row])

        tensors = {"repetition_penalty": torch.tensor([penalty])}
        counts = torch.zeros(vocab, dtype=torch.int16)
        if seen is not None:
            counts[seen] = torch.where(seen % 2 == 0, torch.tensor(-(2**15)), 3).to(torch.int16)
        adjusted = adjusted_row(logits, tensors, 0, counts)
        if adjusted is None:  # a negative penalty of nothing finite
            assert sampled.token_id == -1 or not math.isfinite(logits.max())
            continue
        parameters = Parameters(**values)  # type: ignore[arg-type]
        word = philox_word(seed, position, 0)
        got = int(adjusted.argmax()) if parameters.greedy else draw(distribution(adjusted, parameters), word)
        compared += 1
        if margin(adjusted, parameters, word) > CLEAR:
            clear += 1
            assert got == sampled.token_id, (filters, seen is not None)
    assert clear >= 0.4 * compared  # where many weigh the same, round shares fall between two


def test_unusable_logits_give_no_token_as_in_the_runtime() -> None:
    generator = torch.Generator().manual_seed(5)
    for kind in checks.UNUSABLE:
        logits = checks.row_of(kind, 100, generator)
        (sampled,) = sample(logits.numpy()[None], [Row(SamplingParams(), 1, 0, None)])
        assert sampled.token_id == -1
        assert adjusted_row(logits, {}, 0, None) is None


def test_weights_are_rounded_exponentials() -> None:
    distances = torch.cat([torch.linspace(0, 31, 20001), torch.tensor([0.0, 1e-42, math.inf])])
    exact = torch.exp(-distances.double()) * 2.0**WEIGHT_BITS
    error = (weights_of(distances).double() - exact).abs()
    assert bool((error <= 0.51 + exact * 2.0**-23).all())
    assert int(weights_of(torch.zeros(1))) == 2**WEIGHT_BITS


def test_random_words_are_numpys_philox() -> None:
    for seed, position in ((0, 0), (1, 5), (2**64 - 1, 2**31 - 1)):
        raw = np.random.Philox(key=seed, counter=(position - 1) % 2**256).random_raw(4)
        for word in range(2):
            assert philox_word(seed, position, word) == int(raw[word]) >> 11
        assert philox_word(seed, position, 0) * 2.0**-53 == uniform(seed, position)


def test_log_probabilities_are_the_runtimes() -> None:
    generator = torch.Generator().manual_seed(9)
    for kind in ("normal", "few_values", "some_finite", "huge"):
        logits = checks.row_of(kind, 700, generator)
        ids = 5
        params = SamplingParams(temperature=0.0, logprobs=ids)
        (sampled,) = sample(logits.numpy()[None], [Row(params, 1, 0, None)])
        assert sampled.logprob is not None
        chosen, top, likeliest = log_probs(logits[None], torch.tensor([sampled.token_id]), ids)
        assert float(chosen) == pytest.approx(sampled.logprob.logprob, rel=1e-5, abs=1e-6)
        assert top[0].tolist() == [token for token, _ in sampled.logprob.top]
        want = [value for _, value in sampled.logprob.top]
        assert likeliest[0].tolist() == pytest.approx(want, rel=1e-5, abs=1e-6)


def test_penalties_are_those_of_the_formula() -> None:
    """Divided or multiplied when seen, then lowered for each time chosen, then once."""
    logits = torch.tensor([2.0, -2.0, 2.0, 1.0, -1.0])
    counts = torch.tensor([0, -(2**15), 3, -(2**15) + 2, 1], dtype=torch.int16)
    penalties = {"repetition_penalty": 2.0, "frequency_penalty": 0.25, "presence_penalty": 0.5}
    tensors = {name: torch.tensor([value]) for name, value in penalties.items()}
    assert parameters_of(tensors, 0) == Parameters(**penalties)  # type: ignore[arg-type]
    adjusted = adjusted_row(logits, tensors, 0, counts)
    assert adjusted is not None
    assert adjusted.tolist() == [2.0, -4.0, 1.0 - 0.75 - 0.5, 0.5 - 0.5 - 0.5, -2.0 - 0.25 - 0.5]


@pytest.mark.parametrize(("flavour", "seed"), [("plain", 1), ("asan", 2), ("tsan", 3)])
def test_counts_are_written_as_in_the_reference(flavour: str, seed: int) -> None:
    cases = count_checks.cases(Scale.SMALL if flavour != "tsan" else Scale.QUICK, seed)
    assert check(cases, Build(flavour, ("token_counts",)), seed=seed) == {}


def test_counts_tell_prompt_from_output() -> None:
    table = torch.full((3, 4), 7, dtype=torch.int16)
    tokens = torch.tensor([3, 0, 3, 3, 1], dtype=torch.int32)
    counted = token_counts(
        table, tokens, torch.tensor([0, 4, 5]), torch.tensor([2, 1]), torch.tensor([2, 0], dtype=torch.int32)
    )
    flag = -(2**15)
    assert counted.tolist() == [[0, flag, 0, 0], [7, 7, 7, 7], [flag, 0, 0, flag + 2]]
