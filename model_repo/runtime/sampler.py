"""From logits to tokens, outside the graph. Each row is sampled by itself, from a random number of its own.

The number for a request's n-th output token is Philox(key = seed, counter = n) (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011), so preemption, speculation and company never change a seeded result.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .output import TokenLogprob
from .request import SamplingParams

FloatRow = npt.NDArray[np.float32]

FIRST_CANDIDATES = 512
"""Likeliest tokens looked at first; mostly they hold the whole of top_p, and sorting all is spared."""


class Row(NamedTuple):
    """What one row of logits is sampled by."""

    params: SamplingParams
    seed: int
    position: int  # index of the output token, 0 for the first
    seen: npt.NDArray[np.int64] | None  # distinct token ids so far, where a repetition penalty wants them


class Sampled(NamedTuple):
    """The chosen token, and its log-probabilities where they were asked for."""

    token_id: int
    logprob: TokenLogprob | None


def sample(logits: npt.NDArray[np.float32], rows: list[Row]) -> list[Sampled]:
    """Chooses a token for each row of `logits` [rows, vocab] float32, which is left as it is."""
    plain = [row.params.greedy and row.seen is None for row in rows]
    likeliest = logits.argmax(axis=1) if any(plain) else None
    sampled: list[Sampled] = []
    for index, row in enumerate(rows):
        if plain[index] and likeliest is not None:
            token = int(likeliest[index])
        else:
            token = _choose(logits[index], row)
        wanted = row.params.logprobs
        sampled.append(Sampled(token, None if wanted is None else _logprobs(logits[index], token, wanted)))
    return sampled


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) that decides output token `position` of a request with `seed`."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=position)).random())


def _choose(logits: FloatRow, row: Row) -> int:
    params = row.params
    if row.seen is not None:
        logits = _penalize(logits, row.seen, params.repetition_penalty)
    if params.greedy:
        return int(logits.argmax())
    scaled = (logits - logits.max()) / np.float32(params.temperature)
    candidates, weights = _candidates(scaled, params)
    # Inverse of the cumulative distribution; candidates come likeliest first, ties by token id.
    cumulative = np.cumsum(weights)
    place = int(np.searchsorted(cumulative, uniform(row.seed, row.position) * cumulative[-1], side="right"))
    return int(candidates[min(place, len(candidates) - 1)])


def _penalize(logits: FloatRow, seen: npt.NDArray[np.int64], penalty: float) -> FloatRow:
    """Divides positive and multiplies negative logits of seen tokens (Keskar et al., "CTRL", 2019)."""
    logits = logits.copy()
    values = logits[seen]
    logits[seen] = np.where(values > 0, values / np.float32(penalty), values * np.float32(penalty))
    return logits


def _candidates(
    scaled: FloatRow, params: SamplingParams
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Token ids that may be chosen, likeliest first, and their unnormalized probabilities (float64).

    top_k first, then min_p and top_p on what is left; the likeliest token always stays.
    """
    limit = min(params.top_k or len(scaled), len(scaled))
    whole = params.top_k == 0 and params.top_p >= 1.0
    count = limit if params.top_k or whole else min(FIRST_CANDIDATES, limit)
    while True:
        ids = _likeliest(scaled, count)
        weights = np.exp(scaled[ids].astype(np.float64))
        if params.min_p > 0.0:
            keep = weights >= params.min_p * weights[0]
            ids, weights = ids[keep], weights[keep]
        if params.top_p >= 1.0:
            return ids, weights
        total = weights.sum() if params.top_k else _mass(scaled, params.min_p)
        before = np.cumsum(weights) - weights
        kept = int(np.count_nonzero(before < params.top_p * total))
        if kept < len(ids) or count >= limit or len(ids) < count:
            return ids[:kept], weights[:kept]
        count = limit


def _likeliest(scaled: FloatRow, count: int) -> npt.NDArray[np.int64]:
    """Ids of the `count` largest, largest first; among equals the smaller id comes first and is kept."""
    if count >= len(scaled):
        return np.argsort(-scaled, kind="stable")
    bound = np.partition(scaled, len(scaled) - count)[len(scaled) - count]
    ids = np.flatnonzero(scaled >= bound)
    ids = ids[np.argsort(-scaled[ids], kind="stable")]
    return ids[:count]


def _mass(scaled: FloatRow, min_p: float) -> float:
    """Sum of the unnormalized probabilities that min_p leaves over the whole vocabulary."""
    weights = np.exp(scaled.astype(np.float64))
    return float(weights[weights >= min_p].sum() if min_p > 0.0 else weights.sum())


def _logprobs(logits: FloatRow, token: int, count: int) -> TokenLogprob:
    """Log-probabilities of the model itself: before penalty and temperature."""
    exact = logits.astype(np.float64)
    peak = exact.max()
    normalizer = peak + np.log(np.exp(exact - peak).sum())
    top = _likeliest(logits, count) if count else np.zeros(0, np.int64)
    return TokenLogprob(
        token,
        float(exact[token] - normalizer),
        tuple((int(index), float(exact[index] - normalizer)) for index in top),
    )
