"""Decoders: perplexity of held-out text, and how far the next token's distribution is from float32's.

perplexity = exp(mean of -log p(token | the tokens before it in its window))
KL         = mean over positions of sum_v p_reference(v) * (log p_reference(v) - log p(v)), in nats
top-1      = share of positions whose likeliest token is the reference's
greedy     = share of tokens of greedy continuations up to the first that differs, and of prompts with none
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.batches import BLOCK_SIZE, packed_step

from .subject import Subject, greedy

STEP_TOKENS = 512
"""Tokens of one step; all their logits are in memory, of both sides."""
LOGIT_BYTES = 256 << 20
"""Steps are shorter where a large vocabulary would make the logits of one step larger than this."""

PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 16, 32, 32
_PIECE = 64
"""Rows whose probabilities are in memory at once, in float64."""


@dataclass
class _Sums:
    """Over all positions scored so far."""

    positions: int = 0
    nats: float = 0.0
    reference_nats: float = 0.0
    divergence: float = 0.0
    same: int = 0


def compare_language(
    candidate: Subject,
    reference: Subject | None,
    windows: Sequence[Sequence[int]],
    vocab_size: int,
    advanced: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Figures of `candidate`, and beside `reference` where there is one, over all windows.

    Both sides run each step one after the other, so that their speeds are measured on the same machine at the same
    time. `advanced` is told how many steps are done, of how many.
    """
    sums = _Sums()
    budget = max(32, min(STEP_TOKENS, LOGIT_BYTES // (4 * vocab_size)))
    steps = _steps(windows, budget)
    blocks = max(sum(-(-len(window) // BLOCK_SIZE) for window in step) for step in steps)
    sides = [side for side in (candidate, reference) if side is not None]
    pools = [side.pools(blocks) for side in sides]
    for done, step in enumerate(steps, 1):
        tensors = packed_step(step)
        rows = [side.logits(tensors, pool) for side, pool in zip(sides, pools, strict=True)]
        targets = np.concatenate([np.array([*window[1:], -1]) for window in step])
        scored = np.flatnonzero(targets >= 0)
        for start in range(0, len(scored), _PIECE):
            piece = scored[start : start + _PIECE]
            _add(sums, [side[piece] for side in rows], targets[piece])
        advanced(done, len(steps))
    figures: dict[str, Any] = {
        "tokens": sums.positions,
        "perplexity": _perplexity(sums.nats, sums.positions),
    }
    if reference is not None:
        before = _perplexity(sums.reference_nats, sums.positions)
        figures |= {
            "reference_perplexity": before,
            "perplexity_increase": figures["perplexity"] / before - 1,
            "kl": sums.divergence / sums.positions,
            "top1": sums.same / sums.positions,
            **_continuations(candidate, reference, windows),
        }
    return figures


def log_probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """log softmax over the last axis, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _add(sums: _Sums, sides: Sequence[npt.NDArray[np.float32]], targets: npt.NDArray[np.int64]) -> None:
    found = log_probabilities(sides[0])
    rows = np.arange(len(targets))
    sums.positions += len(targets)
    sums.nats -= float(found[rows, targets].sum())
    if len(sides) == 1:
        return
    wanted = log_probabilities(sides[1])
    sums.reference_nats -= float(wanted[rows, targets].sum())
    sums.divergence += float((np.exp(wanted) * (wanted - found)).sum())
    sums.same += int((sides[0].argmax(axis=1) == sides[1].argmax(axis=1)).sum())


def _perplexity(nats: float, positions: int) -> float:
    return math.exp(nats / positions) if nats / positions < 700 else math.inf


def _continuations(
    candidate: Subject, reference: Subject, windows: Sequence[Sequence[int]]
) -> dict[str, float]:
    """Greedy continuations of the beginnings of windows spread over the text."""
    taken = {place * len(windows) // PROMPTS for place in range(PROMPTS)}
    prompts = [windows[place][:PROMPT_TOKENS] for place in sorted(taken)]
    longest = max(map(len, windows))
    new_tokens = min(NEW_TOKENS, max(1, longest - max(map(len, prompts))))
    pairs = list(
        zip(greedy(candidate, prompts, new_tokens), greedy(reference, prompts, new_tokens), strict=True)
    )
    agreed = [
        next((n for n, (a, b) in enumerate(zip(*pair, strict=True)) if a != b), new_tokens) for pair in pairs
    ]
    return {
        "greedy_tokens": sum(agreed) / (new_tokens * len(pairs)),
        "greedy_whole": sum(count == new_tokens for count in agreed) / len(pairs),
    }


def _steps(windows: Sequence[Sequence[int]], budget: int) -> list[list[Sequence[int]]]:
    """Windows in order, as many a step as fit into `budget` tokens; a longer one is a step by itself."""
    steps: list[list[Sequence[int]]] = []
    room = 0
    for window in windows:
        if not steps or len(window) > room:
            steps.append([])
            room = budget
        steps[-1].append(window)
        room -= len(window)
    return steps
