"""Classifier, reranker and tagger through the server, beside all other models: as transformers' pipelines say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpcclient
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from tritonclient.utils import InferenceServerException

from model_repo.runtime.manifest import Manifest
from pipeline.bench import bench
from pipeline.client import tensor
from pipeline.foreground import how_to_call
from pipeline.serve import Server
from tests.e2e.conftest import post, until
from tests.e2e.heads import CLASSES

TEXTS = ("the ships left newfoundland sailing", "port", "é über the new land", "the ship " * 7)
PASSAGES = ("the ship left port", "land", "the the the new land sailing ships", "ports é")


def ask(running: Server, model: str, **texts: tuple[str, ...]) -> Any:
    """One request with several texts."""
    inputs = [
        tensor(name, np.array([[text.encode()] for text in values], dtype=object))
        for name, values in texts.items()
    ]
    with grpcclient.InferenceServerClient(running.grpc) as client:
        return client.infer(model, inputs)


def test_labels_and_scores_are_those_of_transformers(running: Server, checkpoints: dict[str, Path]) -> None:
    answer = ask(running, "classifier", text_input=TEXTS)
    reference = pipeline("text-classification", model=str(checkpoints["classifier"]))
    for row, text in enumerate(TEXTS):
        expected = reference(text, top_k=None)
        scores = dict(zip(CLASSES, answer.as_numpy("scores")[row], strict=True))
        assert scores == pytest.approx({each["label"]: each["score"] for each in expected}, abs=1e-5)
        assert answer.as_numpy("label")[row, 0].decode() == expected[0]["label"]
        assert answer.as_numpy("score")[row, 0] == pytest.approx(expected[0]["score"], abs=1e-5)
    assert len({label.decode() for label in answer.as_numpy("label")[:, 0]}) > 1, "too dull"


def test_the_best_labels_can_be_asked_for_by_name(running: Server) -> None:
    """Triton's own classification extension, through the ensemble."""
    text = tensor("text_input", np.array([[TEXTS[0].encode()]], dtype=object))
    with grpcclient.InferenceServerClient(running.grpc) as client:
        best = grpcclient.InferRequestedOutput("scores", class_count=2)
        (found,) = client.infer("classifier", [text], outputs=[best]).as_numpy("scores")
    scores = ask(running, "classifier", text_input=TEXTS[:1]).as_numpy("scores")[0]
    for line, place in zip(found, scores.argsort()[::-1], strict=False):
        value, index, name = line.decode().split(":")
        assert (int(index), name) == (place, CLASSES[place])
        assert float(value) == pytest.approx(float(scores[place]), abs=1e-4)
    assert len(found) == 2


def test_a_reranker_scores_pairs_as_transformers(running: Server, checkpoints: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["reranker"])
    model = AutoModelForSequenceClassification.from_pretrained(checkpoints["reranker"]).eval()
    with torch.no_grad():
        expected = [
            model(**tokenizer(text, passage, return_tensors="pt")).logits[0].numpy()
            for text, passage in zip(TEXTS, PASSAGES, strict=True)
        ]
    answer = ask(running, "reranker", text_input=TEXTS, text_pair=PASSAGES)
    np.testing.assert_allclose(answer.as_numpy("score"), np.stack(expected), atol=1e-4)
    swapped = ask(running, "reranker", text_input=PASSAGES, text_pair=TEXTS).as_numpy("score")
    assert np.abs(swapped - np.stack(expected)).max() > 1e-2, "the second text is not told from the first"
    with torch.no_grad():  # the second text may be left out
        alone = model(**tokenizer(TEXTS[0], return_tensors="pt")).logits.numpy()
    np.testing.assert_allclose(
        ask(running, "reranker", text_input=TEXTS[:1]).as_numpy("score"), alone, atol=1e-4
    )


def test_spans_are_those_of_transformers(running: Server, checkpoints: dict[str, Path]) -> None:
    reference = pipeline(
        "token-classification", model=str(checkpoints["tagger"]), aggregation_strategy="simple"
    )
    answers = ask(running, "tagger", text_input=TEXTS).as_numpy("entities")
    spans = 0
    for text, answer in zip(TEXTS, answers[:, 0], strict=True):
        found, expected = json.loads(answer), reference(text)
        assert [(e["label"], e["start"], e["end"]) for e in found] == [
            (e["entity_group"], e["start"], e["end"]) for e in expected
        ]
        assert [e["score"] for e in found] == pytest.approx([e["score"] for e in expected], abs=1e-5)
        spans += len(found)
    assert spans > 2, "too dull"


def test_requests_that_arrive_together_keep_their_own_answers(running: Server) -> None:
    """Ragged logits and offsets share batches of every step."""
    alone = [ask(running, "tagger", text_input=(text,)).as_numpy("entities")[0, 0] for text in TEXTS]
    answers: dict[int, Any] = {}
    with grpcclient.InferenceServerClient(running.grpc) as client:
        for place in range(12):
            text = tensor("text_input", np.array([[TEXTS[place % 4].encode()]], dtype=object))
            client.async_infer(
                "tagger",
                [text],
                lambda result, error, p=place: answers.update(
                    {p: error or result.as_numpy("entities")[0, 0]}
                ),
            )
        until(lambda: len(answers) == 12, "all are answered")
    for place, answer in answers.items():
        found, expected = json.loads(answer), json.loads(alone[place % 4])
        assert [e["text"] for e in found] == [e["text"] for e in expected]
        assert [e["score"] for e in found] == pytest.approx([e["score"] for e in expected], abs=1e-5)


def test_json_over_http(running: Server) -> None:
    status, text = post(running, "reranker/generate", {"text_input": "the ship", "text_pair": "left port"})
    assert status == 200
    assert set(json.loads(text)) >= {"score"}
    expected = ask(running, "reranker", text_input=("the ship",), text_pair=("left port",)).as_numpy("score")
    assert json.loads(text)["score"] == pytest.approx(float(expected[0, 0]), abs=1e-5)


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        ("classifier", {"text_input": ("é " * 60,)}, "62 tokens; 1 to 39 are allowed"),
        (
            "reranker",
            {"text_input": ("ship " * 20,), "text_pair": ("port " * 30,)},
            "together 53 tokens; 1 to 40",
        ),
    ],
)
def test_texts_that_are_too_long(
    running: Server, model: str, inputs: dict[str, tuple[str, ...]], words: str
) -> None:
    with pytest.raises(InferenceServerException, match=words):
        ask(running, model, **inputs)


@pytest.mark.parametrize("name", ["reranker", "tagger"])
def test_engines_with_heads_are_measured(builds: dict[str, Path], name: str) -> None:
    spec = Manifest.read(builds[name] / "engine.json").engine
    assert spec is not None
    (rate,) = bench(builds[name], spec, threads=1)
    assert (rate.unit, rate.value > 0) == ("texts/s", True)


def test_what_a_user_is_told_names_the_outputs(running: Server, repository: Path) -> None:
    told = how_to_call(
        running, {"classifier": "encoder", "reranker": "encoder", "minilm": "encoder"}, repository
    )
    for output in ("label", "score", "scores", "embedding"):
        assert f'print(result.as_numpy("{output}"))' in told
    assert told.count('tensor("text_pair", [') == 1
    snippet = told.split("reranker, with tritonclient:")[1].split("minilm, with curl:")[0]
    exec(snippet, {})
