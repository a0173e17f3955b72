"""Encoders: how far embeddings or label probabilities of held-out sentences are from float32's.

    cosine    = of the two embeddings of a sentence; mean and least
    retrieval = share of sentences whose nearest other sentence, by cosine, is the same one
    order     = mean over sentences of Spearman's rank correlation of the similarities to all others
Logits of labels: share of rows with the same largest logit, and KL in nats, as in `language.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.batches import Batches, Model

from .language import log_probabilities
from .subject import Subject

Rows = npt.NDArray[np.float64]


def compare_sentences(
    candidate: Subject,
    reference: Subject | None,
    model: Model,
    texts: Sequence[Sequence[int]],
    advanced: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Figures over all texts (token ids). Without a reference there is nothing but their number."""
    figures: dict[str, Any] = {"texts": len(texts)}
    if reference is None:
        return figures
    batches = Batches(model, texts)
    found: list[Any] = [None] * len(texts)
    wanted: list[Any] = [None] * len(texts)
    output = candidate.session.get_outputs()[0].name
    for done, batch in enumerate(batches, 1):
        for side, rows in ((candidate, found), (reference, wanted)):
            results = side.run(batch.feeds, batch.tokens)[output]
            for place, result in zip(batch.samples, results, strict=True):
                rows[place] = result.reshape(-1, result.shape[-1])
        advanced(done, len(batches))
    left, right = (np.concatenate(rows).astype(np.float64) for rows in (wanted, found))
    if output == "embedding":
        return figures | embedding_figures(left, right)
    return figures | label_figures(left, right)


def embedding_figures(wanted: Rows, found: Rows) -> dict[str, float]:
    """Of embeddings [texts, hidden] beside the reference's."""
    before, after = _unit(wanted), _unit(found)
    cosines = (before * after).sum(axis=1)
    similar, candidates = before @ before.T, after @ after.T
    for matrix in (similar, candidates):
        np.fill_diagonal(matrix, -np.inf)  # a text is no neighbour of its own
    ranks, ranks_found = (matrix.argsort(axis=1).argsort(axis=1) for matrix in (similar, candidates))
    others = ~np.eye(len(before), dtype=bool)
    correlations = [
        np.corrcoef(ranks[row][others[row]], ranks_found[row][others[row]])[0, 1]
        for row in range(len(before))
    ]
    return {
        "mean_cosine": float(cosines.mean()),
        "min_cosine": float(cosines.min()),
        "retrieval": float((similar.argmax(axis=1) == candidates.argmax(axis=1)).mean()),
        "order": float(np.mean(correlations)),
    }


def label_figures(wanted: Rows, found: Rows) -> dict[str, float]:
    """Of logits [rows, labels] beside the reference's; one label alone has no order, only a difference."""
    if wanted.shape[1] == 1:
        return {"max_difference": float(np.abs(wanted - found).max())}
    before, after = log_probabilities(wanted.astype(np.float32)), log_probabilities(found.astype(np.float32))
    return {
        "top1": float((wanted.argmax(axis=1) == found.argmax(axis=1)).mean()),
        "kl": float((np.exp(before) * (before - after)).sum(axis=1).mean()),
    }


def _unit(rows: Rows) -> Rows:
    unit: Rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit
