"""From logits to tokens, outside the graph. Each row is sampled by itself, from a random number of its own.

The number for a request's n-th output token is Philox(key = seed, counter = n), so preemption, speculation and
company never change a seeded result. It is looked up in the cumulative distribution of the tokens that may be
chosen, in order of token id.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .output import TokenLogprob
from .philox import uniform
from .request import SamplingParams

FloatRow = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

BINS_PER_NAT = 32
BINS = 2048
"""Tokens are sorted into bins by how far their logit is below the largest, for top_p; the last holds the rest."""

GROUP = 64
"""Tokens whose maximum is taken together when the likeliest are looked for."""


class Row(NamedTuple):
    """What one row of logits is sampled by."""

    params: SamplingParams
    seed: int
    position: int  # index of the output token, 0 for the first
    seen: npt.NDArray[np.int64] | None  # distinct token ids so far, where a repetition penalty wants them


class Sampled(NamedTuple):
    """The chosen token, and its log-probabilities where they were asked for.

    `token_id` NO_TOKEN: the logits hold a NaN or no finite largest value, and nothing can be chosen.
    """

    token_id: int
    logprob: TokenLogprob | None


NO_TOKEN = -1


def sample(logits: npt.NDArray[np.float32], rows: list[Row]) -> list[Sampled]:
    """Chooses a token for each row of `logits` [rows, vocab] float32, which is left as it is."""
    likeliest = logits.argmax(axis=1)
    sampled: list[Sampled] = []
    for index, row in enumerate(rows):
        token = int(likeliest[index])  # the place of a NaN where there is one
        if not math.isfinite(logits[index, token]):
            sampled.append(Sampled(NO_TOKEN, None))
            continue
        if not row.params.greedy or row.seen is not None:
            token = _choose(logits[index], row)
        wanted = row.params.logprobs
        sampled.append(Sampled(token, None if wanted is None else _logprobs(logits[index], token, wanted)))
    return sampled


def _choose(logits: FloatRow, row: Row) -> int:
    params = row.params
    if row.seen is not None:
        logits = _penalize(logits, row.seen, params.repetition_penalty)
    if params.greedy:
        return int(logits.argmax())
    scaled = (logits - logits.max()) / np.float32(params.temperature)
    number = uniform(row.seed, row.position)
    ids = _allowed(scaled, params)
    if ids is None:
        return _look_up(np.exp(scaled), number)
    return int(ids[_look_up(np.exp(scaled[ids]), number)])


def _penalize(logits: FloatRow, seen: npt.NDArray[np.int64], penalty: float) -> FloatRow:
    """Divides positive and multiplies negative logits of seen tokens (Keskar et al., "CTRL", 2019)."""
    logits = logits.copy()
    values = logits[seen]
    logits[seen] = np.where(values > 0, values / np.float32(penalty), values * np.float32(penalty))
    return logits


def _look_up(weights: FloatRow, number: float) -> int:
    """The place whose share of the summed `weights` (not all 0) holds `number` in [0, 1)."""
    cumulative = np.cumsum(weights, dtype=np.float64)
    place = int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
    return min(place, len(weights) - 1)


def _allowed(scaled: FloatRow, params: SamplingParams) -> Ids | None:
    """Ids, ascending, of the tokens that may be chosen; None for all.

    `scaled` are logits over temperature, the largest 0. top_k first, then min_p, and top_p of what they leave; the
    likeliest token always stays. Among equals the smaller id is kept.
    """
    ids: Ids | None = None
    if 0 < params.top_k < len(scaled):
        ids = _likeliest(scaled, params.top_k)
    if params.min_p > 0.0:
        low = np.float32(math.log(params.min_p))
        ids = np.flatnonzero(scaled >= low) if ids is None else ids[scaled[ids] >= low]
    if params.top_p < 1.0:
        ids = _nucleus(scaled, params.top_p) if ids is None else ids[_nucleus(scaled[ids], params.top_p)]
    return None if ids is None else np.sort(ids)


def _nucleus(scaled: FloatRow, top_p: float) -> Ids:
    """Places of the likeliest tokens, as many as it takes to reach `top_p` of the whole mass (Holtzman et al.,
    "The curious case of neural text degeneration", 2019)."""
    weights = np.exp(scaled)
    needed = top_p * weights.sum(dtype=np.float64)
    # Only the tokens of one bin have to be put in order: those above it all stay, those below all go.
    bins = np.minimum(scaled * np.float32(-BINS_PER_NAT), np.float32(BINS - 1)).astype(np.int64)
    masses = np.bincount(bins, weights)
    edge = min(int(np.searchsorted(np.cumsum(masses), needed)), len(masses) - 1)
    members = np.flatnonzero(bins == edge)
    members = members[np.argsort(-scaled[members], kind="stable")]
    kept = _count_reaching(weights[members], needed - masses[:edge].sum())
    return np.concatenate([np.flatnonzero(bins < edge), members[:kept]])


def _count_reaching(weights: FloatRow, needed: float) -> int:
    """How many of the weights, in their order, it takes until their sum is `needed`; at least one, at most all."""
    before = np.cumsum(weights, dtype=np.float64) - weights
    return max(int(np.count_nonzero(before < needed)), 1)


def _likeliest(scaled: FloatRow, count: int) -> Ids:
    """Places of the `count` largest (all, if there are fewer), largest first; among equals the smaller first.

    Maxima of groups bound them: when `count` groups reach a value, so do at least `count` tokens.
    """
    whole = len(scaled) // GROUP
    if count >= whole:
        return np.argsort(-scaled, kind="stable")[:count]
    maxima = scaled[: whole * GROUP].reshape(GROUP, whole).max(axis=0)
    bound = np.partition(maxima, whole - count)[whole - count]
    places = np.flatnonzero(scaled >= bound)
    return places[np.argsort(-scaled[places], kind="stable")][:count]


def _logprobs(logits: FloatRow, token: int, count: int) -> TokenLogprob:
    """Log-probabilities of the model itself: before penalty and temperature."""
    peak = logits.max()
    normalizer = float(peak) + math.log(np.exp(logits - peak).sum(dtype=np.float64))
    top = _likeliest(logits, count) if count else np.zeros(0, np.int64)
    return TokenLogprob(
        token,
        float(logits[token]) - normalizer,
        tuple((int(index), float(logits[index]) - normalizer) for index in top),
    )
