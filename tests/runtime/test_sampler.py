"""The sampler against a plain float64 definition, and its random numbers against numpy's Philox."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_repo.runtime.philox import uniform
from model_repo.runtime.request import SamplingParams
from model_repo.runtime.sampler import Row, sample

Floats = npt.NDArray[np.float64]


def plain_distribution(logits: npt.NDArray[np.float32], params: SamplingParams, seen: set[int]) -> Floats:
    """Probabilities float64 [vocab] by the definition of each parameter, token by token."""
    values = [float(value) for value in logits]
    for token in seen:
        factor = params.repetition_penalty
        values[token] = values[token] / factor if values[token] > 0 else values[token] * factor
    order = sorted(range(len(values)), key=lambda token: (-values[token], token))
    if params.temperature == 0:
        order, weights = order[:1], {order[0]: 1.0}
    else:
        top = values[order[0]]
        weights = {token: np.exp((values[token] - top) / params.temperature) for token in order}
    if params.top_k:
        order = order[: params.top_k]
    order = [token for token in order if weights[token] >= params.min_p * weights[order[0]]]
    total = sum(weights[token] for token in order)
    kept: list[int] = []
    mass = 0.0
    for token in order:
        if kept and params.top_p < 1 and mass >= params.top_p * total:
            break
        kept.append(token)
        mass += weights[token]
    probabilities = np.zeros(len(values))
    probabilities[kept] = [weights[token] / mass for token in kept]
    return probabilities


PARAMETERS = [
    {"temperature": 0.0},
    {"temperature": 0.3},
    {"temperature": 1.0},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 1000},
    {"top_p": 0.05},
    {"top_p": 0.6},
    {"top_p": 0.97},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"repetition_penalty": 1.7},
    {"repetition_penalty": 0.6},
    {"temperature": 0.0, "repetition_penalty": 3.0},
    {"top_k": 9, "top_p": 0.7},
    {"top_k": 20, "min_p": 0.05},
    {"top_p": 0.8, "min_p": 0.02},
    {"temperature": 1.4, "top_k": 30, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2},
]


@pytest.mark.parametrize("values", PARAMETERS, ids=str)
@pytest.mark.parametrize("vocab", [5, 64, 151, 1000])
def test_the_token_is_where_the_random_number_falls_in_the_plain_distribution(
    values: dict[str, float], vocab: int
) -> None:
    params = SamplingParams(**values)  # type: ignore[arg-type]
    generator = np.random.default_rng(vocab)
    for seed in range(40):
        logits = generator.normal(0, 3, vocab).astype(np.float32)
        seen = set(generator.integers(0, vocab, 6).tolist())
        penalized = seen if params.repetition_penalty != 1 else set()
        cumulative = np.cumsum(plain_distribution(logits, params, penalized))
        number = uniform(seed, 3)
        expected = int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
        given_seen = np.array(sorted(seen)) if penalized else None
        before = logits.copy()
        (sampled,) = sample(logits[None], [Row(params, seed, 3, given_seen)])
        near = np.abs(cumulative - number).min() < 1e-5  # float32 may fall on the other side
        assert sampled.token_id == expected or near
        assert (logits == before).all()


@pytest.mark.parametrize("values", PARAMETERS[2:], ids=str)
def test_many_seeds_follow_the_distribution(values: dict[str, float]) -> None:
    """Pearson's chi-square. Beyond mean + 5 standard deviations of the statistic is a fault."""
    params = SamplingParams(**values)  # type: ignore[arg-type]
    logits = np.random.default_rng(8).normal(0, 1.5, 24).astype(np.float32)
    seen = {1, 5, 9} if params.repetition_penalty != 1 else set()
    draws = 3000
    given_seen = np.array(sorted(seen)) if seen else None
    rows = [Row(params, seed, seed % 7, given_seen) for seed in range(draws)]
    tokens = [sampled.token_id for sampled in sample(np.tile(logits, (draws, 1)), rows)]
    expected = plain_distribution(logits, params, seen) * draws
    counts = np.bincount(tokens, minlength=24)
    assert (counts[expected == 0] == 0).all()
    often = expected >= 5
    statistic = ((counts - expected)[often] ** 2 / expected[often]).sum()
    freedom = max(int(often.sum()) - 1, 1)
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


def test_equal_logits_are_cut_at_the_smaller_ids() -> None:
    logits = np.zeros((1, 300), np.float32)
    for params in (SamplingParams(top_k=3), SamplingParams(top_p=0.01)):
        tokens = {sample(logits, [Row(params, seed, 0, None)])[0].token_id for seed in range(60)}
        assert tokens == {0, 1, 2}
    assert sample(logits, [Row(SamplingParams(temperature=0.0), 0, 0, None)])[0].token_id == 0


def test_tokens_ruled_out_by_the_model_are_never_chosen() -> None:
    logits = np.full((1, 128), -np.inf, np.float32)
    logits[0, [3, 77]] = 0.5
    for values in ({}, {"top_k": 10}, {"top_p": 0.999}, {"min_p": 0.1}):
        params = SamplingParams(**values)
        tokens = {sample(logits, [Row(params, seed, 0, None)])[0].token_id for seed in range(40)}
        assert tokens == {3, 77}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40))
def test_random_numbers_are_numpys_philox(seed: int, position: int) -> None:
    # numpy counts up before it draws.
    bits = np.random.Philox(key=seed, counter=(position - 1) % 2**256)
    assert uniform(seed, position) == np.random.Generator(bits).random()


def test_random_numbers_of_neighbours_do_not_repeat() -> None:
    numbers = {uniform(seed, position) for seed in range(40) for position in range(40)}
    assert len(numbers) == 1600


def test_a_rows_token_does_not_depend_on_the_other_rows() -> None:
    generator = np.random.default_rng(3)
    logits = generator.normal(0, 2, (12, 500)).astype(np.float32)
    rows = [
        Row(SamplingParams(temperature=float(i % 3), top_k=i * 5, top_p=0.5 + i / 24), i, i, None)
        for i in range(12)
    ]
    together = [sampled.token_id for sampled in sample(logits, rows)]
    assert together == [sample(logits[i : i + 1], rows[i : i + 1])[0].token_id for i in range(12)]


def test_log_probabilities_are_the_models_own() -> None:
    logits = np.random.default_rng(4).normal(0, 4, (1, 700)).astype(np.float32)
    exact = logits[0].astype(np.float64)
    exact -= np.log(np.exp(exact).sum())
    likeliest = np.argsort(-exact)[:6].tolist()
    params = SamplingParams(temperature=0.5, top_k=3, repetition_penalty=2.0, logprobs=6)
    token, logprob = sample(logits, [Row(params, 1, 0, np.array(likeliest[:1]))])[0]
    assert logprob is not None
    assert logprob.token_id == token
    assert logprob.logprob == pytest.approx(exact[token], abs=1e-5)
    assert [alternative for alternative, _ in logprob.top] == likeliest
    assert [value for _, value in logprob.top] == pytest.approx(exact[likeliest].tolist(), abs=1e-5)
    none = sample(logits, [Row(SamplingParams(logprobs=0), 1, 0, None)])[0]
    assert none.logprob is not None
    assert none.logprob.top == ()
    assert sample(logits, [Row(SamplingParams(), 1, 0, None)])[0].logprob is None
