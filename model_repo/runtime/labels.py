"""From logits to what apps read: scores of labels, and the labelled spans of a text. numpy only.

Scores and spans are those of transformers' pipelines `text-classification` and `token-classification`
(https://huggingface.co/docs/transformers/main_classes/pipelines; spans as its aggregation strategy `simple`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .contract import Activation

OUTSIDE = "O"
"""The label of tokens that belong to no span."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of a text under one label; `score` is the mean over its tokens."""

    label: str
    score: float
    start: int
    end: int


def scores(logits: Floats, activation: Activation) -> Floats:
    """float32 [..., labels]: softmax over the labels, the sigmoid of each logit, or the logits themselves."""
    if activation == "none":
        return logits
    if activation == "sigmoid":
        # exp of a large positive number overflows, so each sign has its own form.
        small = np.exp(-np.abs(logits))
        return np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), np.float32)


def spans(token_scores: Floats, labels: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[Span]:
    """The labelled spans of a text, in order.

    token_scores [tokens, labels]; offsets: the characters of each token, empty for those that are none of the text
    (they are left out). Neighbouring tokens of one label are a span, with `B-` and `I-` before labels as in BIO
    tagging: `B-` begins a new one. Spans of the label `O` are left out.
    """
    found: list[Span] = []
    tokens: list[tuple[str, float, int, int]] = []
    for row, (start, end) in zip(token_scores, offsets, strict=True):
        if start == end:
            continue
        best = int(row.argmax())
        begins, label = _tag(labels[best])
        if tokens and (begins or label != tokens[-1][0]):
            found.append(_span(tokens))
            tokens = []
        tokens.append((label, float(row[best]), start, end))
    if tokens:
        found.append(_span(tokens))
    return [span for span in found if span.label != OUTSIDE]


def _tag(label: str) -> tuple[bool, str]:
    """Whether the label begins a span, and the label without its mark."""
    if label.startswith(("B-", "I-")):
        return label[0] == "B", label[2:]
    return False, label


def _span(tokens: Sequence[tuple[str, float, int, int]]) -> Span:
    mean = float(np.mean([score for _, score, _, _ in tokens]))
    return Span(tokens[0][0], mean, tokens[0][2], tokens[-1][3])
