"""From logits to tokens, outside the graph. Each row is sampled by itself, from a random number of its own.

The number for a request's n-th output token is Philox(key = seed, counter = n) (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011), so preemption, speculation and company never change a seeded result.
Nothing sorts the vocabulary: a step samples 16 rows of 50,000 logits in a few milliseconds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .output import TokenLogprob
from .request import SamplingParams

FloatRow = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

CHUNK = 64
"""Logits looked at together in search of the largest."""

FEW = 256
"""How many of the likeliest tokens are tried for top_p before all are looked at."""

BINS = 1024
BIN_RANGE = np.float32(32.0)
"""Natural-log units below the peak that the bins of top_p cover; the last bin takes what lies below."""


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
    likeliest = logits.argmax(axis=1).tolist()
    sampled: list[Sampled] = []
    for index, row in enumerate(rows):
        token: int = likeliest[index]
        if not (row.params.greedy and row.seen is None):
            token = _choose(logits[index], row)
        wanted = row.params.logprobs
        sampled.append(Sampled(token, None if wanted is None else _logprobs(logits[index], token, wanted)))
    return sampled


def uniform(seed: int, position: int) -> float:
    """The random number in [0, 1) that decides output token `position` of a request with `seed`: 53 bits."""
    return float(int(np.random.Philox(key=seed, counter=position).random_raw()) >> 11) * 2.0**-53


def _choose(logits: FloatRow, row: Row) -> int:
    """Penalty, temperature, top-k, top-p on what is left, min-p on what is left, then the draw."""
    params = row.params
    if row.seen is not None:
        logits = _penalize(logits, row.seen, params.repetition_penalty)
    if params.greedy:
        return int(logits.argmax())
    ids: Ids | None = None
    if 0 < params.top_k < len(logits):
        ids = _likeliest(logits, params.top_k)
        weights = np.exp(_scores(logits[ids], params.temperature))
        if params.top_p < 1.0:
            count = _num_within(weights, params.top_p * float(weights.sum(dtype=np.float64)))
            ids, weights = ids[:count], weights[:count]
    else:
        scores = _scores(logits, params.temperature)
        weights = np.exp(scores)
        if params.top_p < 1.0:
            weights = _nucleus(scores, weights, params.top_p)
    if params.min_p > 0.0:
        weights = np.where(weights >= params.min_p, weights, np.float32(0.0))
    drawn = _draw(weights, uniform(row.seed, row.position))
    return drawn if ids is None else int(ids[drawn])


def _penalize(logits: FloatRow, seen: npt.NDArray[np.int64], penalty: float) -> FloatRow:
    """Divides positive and multiplies negative logits of seen tokens (Keskar et al., "CTRL", 2019)."""
    logits = logits.copy()
    values = logits[seen]
    logits[seen] = np.where(values > 0, values / np.float32(penalty), values * np.float32(penalty))
    return logits


def _scores(logits: FloatRow, temperature: float) -> FloatRow:
    """(logit - peak) / temperature; their exp are probabilities but for a common factor, 1 for the peak."""
    scale = np.float32(1.0 / max(temperature, 1e-30))  # a temperature that rounds to 0 would give 0 / 0
    with np.errstate(over="ignore"):  # far below the peak: -inf, of weight 0
        scores: FloatRow = (logits - logits.max()) * scale
    return scores


def _likeliest(logits: FloatRow, count: int) -> Ids:
    """Ids of the `count` largest, largest first; among equals the smaller id comes first and is kept.

    The count-th largest of the chunks' maxima bounds the count-th largest of all from below, so only what
    reaches it is sorted.
    """
    whole = len(logits) // CHUNK * CHUNK
    if count * 2 <= whole // CHUNK:
        maxima = logits[:whole].reshape(-1, CHUNK).max(axis=1)
        ids = np.flatnonzero(logits >= np.partition(maxima, len(maxima) - count)[len(maxima) - count])
    elif count < len(logits):
        ids = np.flatnonzero(logits >= np.partition(logits, len(logits) - count)[len(logits) - count])
    else:
        ids = np.arange(len(logits))
    return ids[np.argsort(-logits[ids], kind="stable")[:count]]


def _num_within(weights: FloatRow, mass: float) -> int:
    """How many of `weights` (largest first) it takes to reach `mass`."""
    reached = int(np.cumsum(weights, dtype=np.float64).searchsorted(mass))
    return min(reached + 1, len(weights))


def _nucleus(scores: FloatRow, weights: FloatRow, top_p: float) -> FloatRow:
    """`weights`, but 0 outside the fewest tokens that reach `top_p` of all (Holtzman et al., 2020); ties by id.

    Most distributions need only the few likeliest. Where those do not reach, weights are summed by bins of
    their score, and only the bin in which the mass is reached is sorted.
    """
    mass = top_p * float(weights.sum(dtype=np.float64))
    kept = np.zeros(len(weights), np.bool_)
    if len(weights) > FEW:
        few = _likeliest(scores, FEW)
        sums = np.cumsum(weights[few], dtype=np.float64)
        if sums[-1] >= mass:
            kept[few[: int(sums.searchsorted(mass)) + 1]] = True
            return np.where(kept, weights, np.float32(0.0))
    bins = np.minimum(scores * (-BINS / BIN_RANGE), BINS - 1).astype(np.int64)
    sums = np.cumsum(np.bincount(bins, weights=weights, minlength=BINS))
    last = min(int(sums.searchsorted(mass)), BINS - 1)
    within = np.flatnonzero(bins == last)
    within = within[np.argsort(-scores[within], kind="stable")]
    missing = mass - (float(sums[last - 1]) if last else 0.0)
    kept[:] = bins < last
    kept[within[: _num_within(weights[within], missing)]] = True
    return np.where(kept, weights, np.float32(0.0))


def _draw(weights: FloatRow, number: float) -> int:
    """Index drawn in proportion to `weights`, by inversion of their sums: first of whole chunks, then in one."""
    starts = np.arange(0, len(weights), CHUNK)
    sums = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    wanted = number * float(sums[-1])
    chunk = _first_above(sums, wanted)
    start = chunk * CHUNK
    inside = np.cumsum(weights[start : start + CHUNK], dtype=np.float64)
    return start + _first_above(inside, wanted - (float(sums[chunk - 1]) if chunk else 0.0))


def _first_above(sums: npt.NDArray[np.float64], value: float) -> int:
    """Index of the first of the ascending `sums` above `value`; rounding may leave none: then the last that adds."""
    index = int(sums.searchsorted(value, side="right"))
    return index if index < len(sums) else int(sums.searchsorted(sums[-1]))


def _logprobs(logits: FloatRow, token: int, count: int) -> TokenLogprob:
    """Log-probabilities of the model itself: before penalty and temperature."""
    peak = logits.max()
    normalizer = float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    top = _likeliest(logits, count).tolist() if count else []
    return TokenLogprob(
        token,
        float(logits[token]) - normalizer,
        tuple((index, float(logits[index]) - normalizer) for index in top),
    )
