"""Interpolated modified Kneser-Ney n-gram model over token ids: the baseline of the demo model.

    p_n(w | h) = max(c(hw) - D(c(hw)), 0) / c(h .) + gamma(h) p_{n-1}(w | h'),     p_0(w) = 1 / V

where h' drops the oldest token of h, c is the count at the highest order and below it the number of
distinct tokens that precede hw, c(h .) is the sum of c over the next token, D takes one of three
values by count (1, 2, 3 or more) estimated per order from the counts of counts, and gamma(h) hands
out what was discounted: (D1 N1(h) + D2 N2(h) + D3 N3(h)) / c(h .). A context never seen leaves all to
p_{n-1}. Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1998),
section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Order:
    """The tables of one order. An n-gram is one int64: its tokens' bits, the oldest highest."""

    ngrams: Ids  # [distinct n-grams], sorted
    discounted: Floats  # [distinct n-grams], c(hw) - D(c(hw))
    contexts: Ids  # [distinct contexts], sorted
    totals: Floats  # [distinct contexts], c(h .)
    backoffs: Floats  # [distinct contexts], gamma(h)
    discounts: tuple[float, float, float]


def estimate_discounts(counts: Ids) -> tuple[float, float, float]:
    """(D1, D2, D3) from the counts of one order; fixed ones where a count of counts is zero."""
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == value)) for value in (1, 2, 3, 4))
    if 0 in (n1, n2, n3, n4):
        return 0.5, 1.0, 1.5
    ratio = n1 / (n1 + 2.0 * n2)
    return 1.0 - 2.0 * ratio * n2 / n1, 2.0 - 3.0 * ratio * n3 / n2, 3.0 - 4.0 * ratio * n4 / n3


def lookup(sorted_keys: Ids, keys: Ids) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """(position, found) of each key in `sorted_keys`; the position of one not found means nothing."""
    position = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return position, sorted_keys[position] == keys


class KneserNey:
    """An n-gram model trained on one stream of tokens."""

    def __init__(self, ids: Ids, vocabulary_size: int, order: int = 5, pad_id: int = 0) -> None:
        """Count `ids` [tokens]; `pad_id` stands before the first. `order` tokens must fit 63 bits."""
        self.vocabulary_size = vocabulary_size
        self.order = order
        self._pad_id = pad_id
        self._bits = max(1, (vocabulary_size - 1).bit_length())
        if self._bits * order > 63:
            raise ValueError(f"{order} tokens of a vocabulary of {vocabulary_size} do not fit an int64")
        ngrams, counts = np.unique(self._pack(ids, order), return_counts=True)
        tables = [self._table(ngrams, counts)]
        for length in range(order - 1, 0, -1):
            without_oldest = ngrams & ((1 << (self._bits * length)) - 1)
            ngrams, counts = np.unique(without_oldest, return_counts=True)
            tables.append(self._table(ngrams, counts))
        self.orders = tables[::-1]  # orders[n - 1] has the n-grams

    def _pack(self, ids: Ids, length: int) -> Ids:
        """The n-gram that ends at each token, [tokens]."""
        padded = np.concatenate((np.full(length - 1, self._pad_id), ids)).astype(np.int64)
        packed = np.zeros(len(ids), dtype=np.int64)
        for offset in range(length):
            packed = (packed << self._bits) | padded[offset : offset + len(ids)]
        return packed

    def _table(self, ngrams: Ids, counts: Ids) -> Order:
        discounts = estimate_discounts(counts)
        discount = np.array((0.0, *discounts))[np.minimum(counts, 3)]
        contexts, context_of = np.unique(ngrams >> self._bits, return_inverse=True)
        totals = np.bincount(context_of, weights=counts).astype(np.float64)
        backoffs = np.bincount(context_of, weights=discount) / totals
        return Order(ngrams, counts.astype(np.float64) - discount, contexts, totals, backoffs, discounts)

    def _probabilities(self, packed: Ids) -> Floats:
        """Probability of the newest token of each packed n-gram of the highest order."""
        probability = np.full(len(packed), 1.0 / self.vocabulary_size)
        for length, table in enumerate(self.orders, start=1):
            key = packed & ((1 << (self._bits * length)) - 1)
            context, known = lookup(table.contexts, key >> self._bits)
            ngram, seen = lookup(table.ngrams, key)
            share = np.where(seen, table.discounted[ngram], 0.0) / table.totals[context]
            probability = np.where(known, share + table.backoffs[context] * probability, probability)
        return probability

    def distribution(self, context: Ids) -> Floats:
        """Probability of every token after `context` (its last `order - 1` tokens count). [vocabulary]"""
        with_pad = np.concatenate(([self._pad_id], context)).astype(np.int64)
        history = self._pack(with_pad, self.order)[-1]
        mask = (1 << (self._bits * (self.order - 1))) - 1
        return self._probabilities(((history & mask) << self._bits) | np.arange(self.vocabulary_size))

    def nats(self, ids: Ids) -> float:
        """Negative log-likelihood in nats of a stream of tokens, each given those before it."""
        return float(-np.log(self._probabilities(self._pack(ids, self.order))).sum())
