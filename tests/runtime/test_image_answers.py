"""Labels and objects from an engine's outputs, against sums written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from model_repo.runtime.classification import ranked
from model_repo.runtime.detection import detected, objects
from model_repo.runtime.errors import BadInput
from model_repo.runtime.image_steps import ImageSteps, Preprocessing

LABELS = ("cat", "dog", "über", "gull")
RANDOM = np.random.default_rng(1)
LOGITS = RANDOM.standard_normal((3, 4)).astype(np.float32)
QUERIES = (3 * RANDOM.standard_normal((9, 5))).astype(np.float32)
CENTERS = RANDOM.random((9, 4), np.float32)


def steps(task: str, scoring: str, candidates: int = 0, labels: tuple[str, ...] = LABELS) -> ImageSteps:
    return ImageSteps(task, Preprocessing(), labels, scoring, candidates)  # type: ignore[arg-type]


def corners(query: int, height: int, width: int) -> list[float]:
    x, y, w, h = CENTERS[query].astype(float)
    return [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "none"])
def test_the_best_labels_come_first(scoring: str) -> None:
    found = ranked(LOGITS, steps("classification", scoring), 3)
    for row, logits in enumerate(LOGITS.astype(float)):
        total = sum(math.exp(value) for value in logits)
        make = {
            "softmax": lambda value, total=total: math.exp(value) / total,
            "sigmoid": lambda value: 1 / (1 + math.exp(-value)),
            "none": float,
        }[scoring]
        by_label = sorted(((make(value), place) for place, value in enumerate(logits)), reverse=True)
        assert [label.decode() for label in found.labels[row]] == [LABELS[place] for _, place in by_label[:3]]
        assert found.scores[row] == pytest.approx([score for score, _ in by_label[:3]], rel=1e-5)
        assert found.all_scores[row] == pytest.approx([make(value) for value in logits], rel=1e-5)


@pytest.mark.parametrize("top_k", [0, -1, 5])
def test_no_more_labels_than_there_are(top_k: int) -> None:
    with pytest.raises(BadInput, match=f"top_k is {top_k}; the model has 4 labels, so give 1 to 4"):
        ranked(LOGITS, steps("classification", "softmax"), top_k)


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.8])
def test_queries_have_a_class_or_no_object(threshold: float) -> None:
    found = objects(QUERIES, CENTERS, (480, 640), steps("detection", "softmax"), threshold)
    expected = []
    for query, logits in enumerate(QUERIES.astype(float)):
        powers = [math.exp(value) for value in logits]
        score = max(powers[:-1]) / sum(powers)
        if score > threshold:
            expected.append((query, powers.index(max(powers[:-1])), score))
    assert found.classes.tolist() == [place for _, place, _ in expected]
    assert found.scores == pytest.approx([score for *_, score in expected], rel=1e-5)
    for box, (query, *_) in zip(found.boxes, expected, strict=True):
        assert box == pytest.approx(corners(query, 480, 640), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("candidates", [0, 4, 100])
def test_pairs_of_query_and_class_are_ranked(candidates: int) -> None:
    found = objects(QUERIES, CENTERS, (480, 640), steps("detection", "sigmoid", candidates), 0.3)
    pairs = sorted(
        (
            (1 / (1 + math.exp(-float(value))), query, place)
            for query, logits in enumerate(QUERIES)
            for place, value in enumerate(logits)
        ),
        reverse=True,
    )
    expected = [pair for pair in pairs[: candidates or len(QUERIES)] if pair[0] > 0.3]
    assert found.classes.tolist() == [place for *_, place in expected]
    assert found.scores == pytest.approx([score for score, *_ in expected], rel=1e-5)
    for box, (_, query, _) in zip(found.boxes, expected, strict=True):
        assert box == pytest.approx(corners(query, 480, 640), rel=1e-4, abs=1e-3)


def test_images_with_fewer_objects_are_filled_up() -> None:
    logits = np.stack([QUERIES, QUERIES - 20 * np.eye(1, 5, 4, dtype=np.float32) * -1])
    centers = np.stack([CENTERS, CENTERS])
    found = detected(logits, centers, [(10, 20), (30, 40)], steps("detection", "softmax"), 0.5)
    (first,), (second,) = found.num_objects.tolist()
    assert first > second == 0
    assert np.isfinite(found.boxes[0]).all()
    assert np.isnan(found.boxes[1]).all()
    assert np.isnan(found.scores[1]).all()
    assert set(found.labels[1]) == {b""}
    assert set(found.labels[0]) <= {label.encode() for label in LABELS}


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_a_threshold_is_a_score(threshold: float) -> None:
    with pytest.raises(BadInput, match="scores are between 0 and 1, so give 0 to less than 1"):
        detected(QUERIES[None], CENTERS[None], [(1, 1)], steps("detection", "softmax"), threshold)
