"""Labels, scores and spans as transformers' pipelines give them, from the runtime's tokenizer and our steps."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Library
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    pipeline,
)

from model_repo.runtime.contract import Activation, Head
from model_repo.runtime.tokenizer import Tokenizer
from tests.export.tiny_models import sharpened
from tests.word_pieces import in_transformers, word_pieces

LABELS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
TEXTS = (
    "the ships left newfoundland sailing",
    "é über",
    "ports",
    "the the unknown ship left the new port sailing ships",
)
STEPS = "model_repo.backends."


@pytest.fixture(scope="module")
def library() -> Library:
    return word_pieces()


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Modules of Triton models, over a stand-in for tritonserver's side of tensors."""
    backend = SimpleNamespace(
        Tensor=lambda name, array: (name, array),
        InferenceResponse=lambda tensors=(), error=None: SimpleNamespace(outputs=dict(tensors), error=error),
        TritonError=SimpleNamespace,
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)

    def module(name: str) -> ModuleType:
        for each in ("tensors", "startup", name):
            monkeypatch.delitem(sys.modules, STEPS + each, raising=False)
        made = importlib.import_module(STEPS + name)
        for each in ("tensors", "startup", name):
            monkeypatch.delitem(sys.modules, STEPS + each, raising=False)
        return made

    return module


def config(library: Library, labels: tuple[str, ...]) -> BertConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertConfig(
        vocab_size=library.get_vocab_size(), id2label=dict(enumerate(labels)), attn_implementation="eager", **sizes
    )  # fmt: skip


def logits(model: Any, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(torch.tensor([ids])).logits[0].numpy())


def test_spans_are_those_of_the_token_classification_pipeline(
    library: Library, step: Callable[[str], ModuleType]
) -> None:
    torch.manual_seed(1)
    model = sharpened(BertForTokenClassification(config(library, LABELS)))
    tokenizer, head = Tokenizer(library), Head("token_classification", LABELS, "softmax")
    reference = pipeline(
        "token-classification", model=model, tokenizer=in_transformers(library), aggregation_strategy="simple"
    )
    encodings = [tokenizer.encode_pair(text, None) for text in TEXTS]
    longest = max(len(encoding.ids) for encoding in encodings)
    filled = np.full((len(TEXTS), longest, len(LABELS)), np.nan, np.float32)
    offsets = np.full((len(TEXTS), longest, 2), -1, np.int32)
    for row, encoding in enumerate(encodings):
        filled[row, : len(encoding.ids)] = logits(model, encoding.ids)
        offsets[row, : len(encoding.ids)] = encoding.offsets
    inputs = {
        "logits": filled,
        "offsets": offsets,
        "text_input": np.array([[text.encode()] for text in TEXTS], object),
    }
    answers = step("labels_postprocess").outputs(head, inputs)["entities"]
    assert answers.shape == (len(TEXTS), 1)
    lengths = set()
    for text, answer in zip(TEXTS, answers[:, 0], strict=True):
        found, expected = json.loads(answer), reference(text)
        assert [(e["label"], e["start"], e["end"]) for e in found] == [
            (e["entity_group"], e["start"], e["end"]) for e in expected
        ]
        np.testing.assert_allclose([e["score"] for e in found], [e["score"] for e in expected], atol=1e-5)
        assert all(e["text"] == text[e["start"] : e["end"]] for e in found)
        lengths |= {len(e["text"].split()) for e in found}
    assert len(lengths) > 1, "no span of several words, or none of one: too dull"


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_scores_are_those_of_the_text_classification_pipeline(
    library: Library, step: Callable[[str], ModuleType], activation: Activation
) -> None:
    torch.manual_seed(1)
    labels = ("calm", "rough", "foggy")
    model = sharpened(BertForSequenceClassification(config(library, labels)))
    reference = pipeline("text-classification", model=model, tokenizer=in_transformers(library))
    tokenizer = Tokenizer(library)
    stacked = np.stack([logits(model, tokenizer.encode(text)) for text in TEXTS])
    head = Head("sequence_classification", labels, activation)
    found = step("labels_postprocess").outputs(head, {"logits": stacked})
    for row, text in enumerate(TEXTS):
        expected = reference(text, top_k=None, function_to_apply=activation)
        by_label = dict(zip(labels, found["scores"][row], strict=True))
        for each in expected:
            assert by_label[each["label"]] == pytest.approx(each["score"], abs=1e-5)
        assert found["label"][row, 0].decode() == expected[0]["label"]
        assert found["score"][row, 0] == pytest.approx(expected[0]["score"], abs=1e-5)
    assert len({label.decode() for label in found["label"][:, 0]}) > 1, "too dull"


def test_one_label_gives_only_its_score(step: Callable[[str], ModuleType]) -> None:
    head = Head("sequence_classification", ("LABEL_0",), "none")
    found = step("labels_postprocess").outputs(head, {"logits": np.array([[2.5], [-1.0]], np.float32)})
    assert {name: array.tolist() for name, array in found.items()} == {"score": [[2.5], [-1.0]]}


class Request:
    """What a model reads of a request."""

    def __init__(self, **tensors: list[str]) -> None:
        arrays = {name: np.array([[t.encode()] for t in texts], object) for name, texts in tensors.items()}
        self._tensors = [
            SimpleNamespace(name=lambda n=name: n, as_numpy=lambda a=array: a)
            for name, array in arrays.items()
        ]

    def inputs(self) -> list[Any]:
        return self._tensors


def test_pairs_are_tokenized_with_types_and_offsets(
    library: Library, step: Callable[[str], ModuleType]
) -> None:
    module = step("encoder_preprocess")
    model = module.TritonPythonModel()
    model.tokenizer, model.max_length = Tokenizer(library), 12
    model.outputs = ["input_ids", "token_type_ids", "offsets"]
    (answer,) = model.execute([Request(text_input=["the ships", "port"], text_pair=["left port", "é"])])
    expected = in_transformers(library)(
        ["the ships", "port"], ["left port", "é"], return_offsets_mapping=True, return_token_type_ids=True
    )
    for row in range(2):
        size = len(expected["input_ids"][row])
        assert answer.outputs["input_ids"][row, :size].tolist() == expected["input_ids"][row]
        assert answer.outputs["token_type_ids"][row, :size].tolist() == expected["token_type_ids"][row]
        spans = [list(span) for span in expected["offset_mapping"][row]]
        assert answer.outputs["offsets"][row, :size].tolist() == spans
        assert (answer.outputs["input_ids"][row, size:] == -1).all()
        assert (answer.outputs["offsets"][row, size:] == -1).all()


def test_bad_pairs_are_refused_one_by_one(
    library: Library, step: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = step("encoder_preprocess")
    monkeypatch.setattr(module, "error_response", lambda error: str(error))
    model = module.TritonPythonModel()
    model.tokenizer, model.max_length, model.outputs = Tokenizer(library), 6, ["input_ids"]
    several, long, good = model.execute(
        [
            Request(text_input=["a", "b"], text_pair=["c"]),
            Request(text_input=["the ship"], text_pair=["left port sail"]),
            Request(text_input=["the ship"], text_pair=["left"]),
        ]
    )
    assert several == "2 texts in text_input, but 1 in text_pair; send one for each, or none"
    assert long == "the two texts have together 8 tokens; 1 to 6 are allowed. Shorten it"
    assert good.outputs["input_ids"].shape == (1, 6)
    assert Path(module.__file__).name == "encoder_preprocess.py"
