"""Encoders with heads: logits of texts, pairs and tokens as transformers gives them, whatever shares the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import PreTrainedModel

from model_repo.runtime.contract import Head
from pipeline.export.encoder import export_encoder
from tests.export.compiled import compiled
from tests.export.encoder_families import CARRIED, MAX_LENGTH, TEXTS, TOKENS, Family
from tests.export.runners import serialized, session
from tests.export.tiny_models import VOCABULARY

Floats = npt.NDArray[np.float32]
LABELS = ("sea", "land", "air")
HEADS = {
    TEXTS: Head("sequence_classification", LABELS, "softmax"),
    TOKENS: Head("token_classification", LABELS, "softmax"),
}
LENGTHS = ((1,), (9, 2, 40), (3, 3, MAX_LENGTH))


@dataclass
class Case:
    """A tiny model with a head: its graph in ONNX Runtime, its engine, and transformers' model."""

    running: Any
    engine: Any
    reference: PreTrainedModel
    head: Head

    def expect(self, text: list[int], types: list[int]) -> Floats:
        given = {}
        if len(self.running.get_inputs()) == 3:
            given["token_type_ids"] = torch.tensor([types])
        with torch.no_grad():
            logits: Floats = self.reference(input_ids=torch.tensor([text]), **given).logits[0].numpy()
        return logits

    def run(
        self, texts: list[list[int]], types: list[list[int]], extra_padding: int = 0, engine: bool = False
    ) -> list[Floats]:
        """One padded batch through the exported graph, or the engine; of rows a token, each text's own."""
        feed = {
            name: np.zeros((len(texts), max(map(len, texts)) + extra_padding), np.int64)
            for name in ("input_ids", "attention_mask", "token_type_ids")
        }
        for row, text in enumerate(texts):
            feed["input_ids"][row, : len(text)] = text
            feed["attention_mask"][row, : len(text)] = 1
            feed["token_type_ids"][row, : len(text)] = types[row]
        names = [value.name for value in self.running.get_inputs()]
        session = self.engine if engine else self.running
        (logits,) = session.run(["logits"], {name: feed[name] for name in names})
        if self.head.kind == "sequence_classification":
            return list(logits)
        return [rows[: len(text)] for rows, text in zip(logits, texts, strict=True)]


def _cases() -> list[Any]:
    """Every head of every family; a reranker of two."""
    found = []
    for family in CARRIED:
        for suffix in (TEXTS, TOKENS):
            if suffix in (*family.heads, *family.wide_heads):
                marks = pytest.mark.wide if suffix in family.wide_heads else ()
                found.append(pytest.param((family, suffix, 3), id=f"{family.name}{suffix}", marks=marks))
    rerankers = {"MPNet": (), "XLM-RoBERTa": pytest.mark.wide}
    return found + [
        pytest.param((family, TEXTS, 1), id=f"{family.name} as reranker", marks=rerankers[family.name])
        for family in CARRIED
        if family.name in rerankers
    ]


@pytest.fixture(scope="module", params=_cases())
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    family, suffix, num_labels = request.param
    assert isinstance(family, Family)
    head = HEADS[suffix] if num_labels > 1 else Head("sequence_classification", ("score",), "none")
    settings = {"num_labels": num_labels, "classifier_dropout": 0.0}
    graph = export_encoder(family.model(suffix, **settings), "mean", False, MAX_LENGTH, 24, head)
    running = session(serialized(graph.model))
    engine, report = compiled(graph.model, tmp_path_factory.mktemp("engine"))
    assert bool(report.rule("packed_texts")) != bool(family.padded)
    return Case(running, engine, family.model(suffix, **settings), head)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_logits_are_those_of_transformers(case: Case, lengths: tuple[int, ...]) -> None:
    random = np.random.default_rng(7)
    texts = [random.integers(3, VOCABULARY, length).tolist() for length in lengths]
    types = [[0] * (len(text) // 2) + [1] * (len(text) - len(text) // 2) for text in texts]
    everything = []
    compiled_logits = case.run(texts, types, engine=True)
    for text, kinds, logits, served in zip(
        texts, types, case.run(texts, types), compiled_logits, strict=True
    ):
        expected = case.expect(text, kinds)
        assert logits.shape == expected.shape
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
        np.testing.assert_allclose(served, expected, rtol=0, atol=1e-4)
        everything.append(expected.reshape(-1, len(case.head.labels))[0])
    if len(texts) > 1:
        assert np.ptp(np.stack(everything), axis=0).max() > 1e-2, "too dull to tell texts apart"


def test_padding_does_not_matter(case: Case) -> None:
    texts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    types = [[0] * 3, [0] * 5]
    for plain, padded in zip(case.run(texts, types), case.run(texts, types, extra_padding=20), strict=True):
        np.testing.assert_allclose(padded, plain, rtol=0, atol=1e-5)


def test_token_types_are_told_apart_where_the_graph_takes_them(case: Case) -> None:
    text = [5, 6, 7, 8, 9, 10]
    (first,), (second,) = case.run([text], [[0] * 6]), case.run([text], [[0, 0, 0, 1, 1, 1]])
    takes_types = len(case.running.get_inputs()) == 3
    assert (np.abs(first - second).max() > 1e-2) == takes_types
