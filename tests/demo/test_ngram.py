"""The Kneser-Ney model against its definition, written again with dictionaries and no packing."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from demo.ngram import KneserNey, estimate_discounts

VOCABULARY = 7


def corpus(length: int, seed: int) -> list[int]:
    """Tokens of which a few are frequent, with repetitions, so that all orders have counts."""
    generator = np.random.default_rng(seed)
    return [int(token) for token in np.minimum(generator.geometric(0.35, size=length) - 1, VOCABULARY - 1)]


def brute_force(ids: list[int], order: int, discounts: list[tuple[float, float, float]]):  # type: ignore[no-untyped-def]
    """A function (context, token) -> probability, straight from the formula; recursion over orders."""
    padded = [0] * (order - 1) + ids
    counts: dict[int, Counter[tuple[int, ...]]] = {
        order: Counter(tuple(padded[at : at + order]) for at in range(len(ids)))
    }
    for length in range(order - 1, 0, -1):
        counts[length] = Counter(ngram[1:] for ngram in counts[length + 1])

    def discount(length: int, count: int) -> float:
        return 0.0 if count == 0 else discounts[length - 1][min(count, 3) - 1]

    def probability(context: tuple[int, ...], token: int) -> float:
        length = len(context) + 1
        followers = {word: counts[length][(*context, word)] for word in range(VOCABULARY)}
        total = sum(followers.values())
        lower = 1.0 / VOCABULARY if length == 1 else probability(context[1:], token)
        if total == 0:
            return lower
        freed = sum(discount(length, count) for count in followers.values())
        kept = followers[token] - discount(length, followers[token])
        return (kept + freed * lower) / total

    return probability


@pytest.mark.parametrize(("order", "length"), [(1, 60), (2, 60), (3, 300), (5, 300)])
def test_probabilities_are_those_of_the_definition_and_sum_to_one(order: int, length: int) -> None:
    ids = corpus(length, seed=order)
    model = KneserNey(np.array(ids), VOCABULARY, order=order)
    expected = brute_force(ids, order, [table.discounts for table in model.orders])
    generator = np.random.default_rng(1)
    contexts = [tuple(ids[at : at + order - 1]) for at in range(0, 40, 3)]
    contexts += [tuple(int(t) for t in generator.integers(VOCABULARY, size=order - 1)) for _ in range(20)]
    for context in contexts:
        got = model.distribution(np.array(context, dtype=np.int64))
        assert got.sum() == pytest.approx(1.0, abs=1e-12)
        assert got == pytest.approx([expected(context, token) for token in range(VOCABULARY)], abs=1e-12)


def test_a_stream_costs_the_sum_of_its_tokens() -> None:
    ids = corpus(300, seed=9)
    model = KneserNey(np.array(ids), VOCABULARY, order=3)
    expected = brute_force(ids, 3, [table.discounts for table in model.orders])
    stream = [5, 1, 0, 0, 6, 2]
    padded = [0, 0, *stream]
    cost = -sum(math.log(expected(tuple(padded[at : at + 2]), padded[at + 2])) for at in range(len(stream)))
    assert model.nats(np.array(stream)) == pytest.approx(cost, rel=1e-12)


def test_discounts_follow_the_counts_of_counts() -> None:
    counts = np.array([1] * 8 + [2] * 4 + [3] * 2 + [4] * 1)
    # Y = 8 / (8 + 2 * 4) = 1/2; D1 = 1 - 2Y 4/8, D2 = 2 - 3Y 2/4, D3 = 3 - 4Y 1/2
    assert estimate_discounts(counts) == pytest.approx((0.5, 1.25, 2.0))
    assert estimate_discounts(np.array([1, 1, 2])) == (0.5, 1.0, 1.5)


def test_an_order_too_long_for_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        KneserNey(np.array([0, 1]), vocabulary_size=1 << 20, order=5)
