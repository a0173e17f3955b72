"""From logits to scores and spans, by hand. (tests/backends compares them with transformers' pipelines.)"""

from __future__ import annotations

import numpy as np
import pytest

from model_repo.runtime.labels import Span, scores, spans

LABELS = ("O", "B-SEA", "I-SEA", "B-AIR", "I-AIR", "plain")


def test_softmax_of_large_logits_does_not_overflow() -> None:
    found = scores(np.array([[1000.0, 999.0, -1000.0]], np.float32), "softmax")
    np.testing.assert_allclose(found, [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 0]], atol=1e-6)
    assert found.dtype == np.float32


def test_sigmoid_of_large_logits_does_not_overflow() -> None:
    with np.errstate(all="raise", under="ignore"):
        found = scores(np.array([-1000.0, -1.0, 0.0, 2.0, 1000.0], np.float32), "sigmoid")
    np.testing.assert_allclose(found, [0, 1 / (1 + np.e), 0.5, 1 / (1 + np.exp(-2)), 1], atol=1e-6)
    assert found.dtype == np.float32


def test_logits_that_are_scores_stay() -> None:
    logits = np.array([[3.5], [-7.25]], np.float32)
    assert scores(logits, "none").tolist() == logits.tolist()


def tagged(*labels: str) -> np.ndarray:
    """Scores [tokens, labels] whose largest says the label; each token has another one."""
    rows = np.zeros((len(labels), len(LABELS)), np.float32)
    for token, label in enumerate(labels):
        rows[token, LABELS.index(label)] = (token + 1) / 10
    return rows


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("O", "O"), []),
        (("B-SEA", "I-SEA", "O"), [("SEA", 0, 5, 0.15)]),
        (("B-SEA", "B-SEA", "I-SEA"), [("SEA", 0, 2, 0.1), ("SEA", 3, 8, 0.25)]),  # B- begins a new one
        (("I-SEA", "I-SEA"), [("SEA", 0, 5, 0.15)]),  # without a beginning
        (("B-SEA", "I-AIR"), [("SEA", 0, 2, 0.1), ("AIR", 3, 5, 0.2)]),
        (("B-SEA", "O", "I-SEA"), [("SEA", 0, 2, 0.1), ("SEA", 6, 8, 0.3)]),
        (("plain", "plain", "B-AIR"), [("plain", 0, 5, 0.15), ("AIR", 6, 8, 0.3)]),
    ],
)
def test_neighbouring_tokens_of_a_label_are_a_span(
    labels: tuple[str, ...], expected: list[tuple[str, int, int, float]]
) -> None:
    offsets = [(3 * token, 3 * token + 2) for token in range(len(labels))]
    found = spans(tagged(*labels), LABELS, offsets)
    assert [(span.label, span.start, span.end) for span in found] == [each[:3] for each in expected]
    assert [span.score for span in found] == pytest.approx([each[3] for each in expected])


def test_tokens_that_are_none_of_the_text_are_left_out() -> None:
    found = spans(tagged("B-SEA", "B-AIR", "I-AIR", "B-SEA"), LABELS, [(0, 0), (0, 4), (4, 6), (0, 0)])
    assert found == [Span("AIR", pytest.approx(0.25), 0, 6)]


def test_no_tokens_no_spans() -> None:
    assert spans(np.zeros((0, 6), np.float32), LABELS, []) == []
