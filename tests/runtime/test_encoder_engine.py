"""Encoders on ONNX Runtime: ragged texts are one batch, padding does not count; embeddings, or logits of labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_repo.runtime.contract import EngineSpec, Head, HeadKind
from model_repo.runtime.encoder import EncoderEngine
from model_repo.runtime.errors import BadInput
from tests.runtime.graphs import save

onnx = pytest.importorskip("onnx", reason="graphs are written with the package onnx")

ENCODER = EngineSpec(
    kind="encoder",
    name="sums",
    target="onnxruntime",
    precision="fp32",
    graph="engine.onnx",
    plugin=None,
    vocab_size=100,
    max_length=16,
    hidden_size=3,
    encoder_inputs=("input_ids", "attention_mask", "token_type_ids"),
)


@pytest.fixture
def encoder(tmp_path: Path) -> EncoderEngine:
    """Embedding [sum of ids * mask, sum of mask, sum of type ids]: padding must not count."""
    make, types = onnx.helper.make_node, onnx.TensorProto
    inputs = [
        onnx.helper.make_tensor_value_info(name, types.INT64, ["batch", "length"])
        for name in ENCODER.encoder_inputs
    ]
    nodes = [
        make("Constant", [], ["axis"], value_ints=[1]),
        make("Mul", ["input_ids", "attention_mask"], ["seen"]),
        *[make("ReduceSum", [name, "axis"], [f"{name}_sum"], keepdims=1)
          for name in ("seen", "attention_mask", "token_type_ids")],
        make("Concat", ["seen_sum", "attention_mask_sum", "token_type_ids_sum"], ["sums"], axis=1),
        make("Cast", ["sums"], ["embedding"], to=types.FLOAT),
    ]  # fmt: skip
    output = onnx.helper.make_tensor_value_info("embedding", types.FLOAT, ["batch", 3])
    save(tmp_path, "sums", nodes, inputs, [output])
    return EncoderEngine(tmp_path, ENCODER, None, threads=1)


def test_texts_of_different_lengths_are_one_batch(encoder: EncoderEngine) -> None:
    texts = [list(range(1, length + 1)) for length in (3, 16, 1, 7, 2, 9, 5, 11)]
    embedding = encoder.embed(texts)
    assert embedding.dtype == np.float32
    assert embedding.tolist() == [[sum(text), len(text), 0] for text in texts]
    assert encoder.metrics.take_observations() == [("batch_size", 8)]
    assert encoder.metrics.counters() == {"steps": 1, "requests_stop": 8, "prompt_tokens": 54}
    encoder.warm_up()


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "no text to embed"),
        ([[1], []], "0 tokens; this encoder takes 1 to 16"),
        ([[1] * 17], "17 tokens; this encoder takes 1 to 16"),
        ([[5, 100]], "outside the vocabulary; ids are 0 to 99"),
        ([[-1]], "outside the vocabulary"),
    ],
)
def test_texts_that_do_not_fit_are_refused(encoder: EncoderEngine, texts: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        encoder.embed(texts)


def head_engine(folder: Path, kind: HeadKind) -> EncoderEngine:
    """Logits of two labels: token id * mask and token type, of each token, or summed over the text."""
    make, types = onnx.helper.make_node, onnx.TensorProto
    inputs = [
        onnx.helper.make_tensor_value_info(name, types.INT64, ["batch", "length"])
        for name in ENCODER.encoder_inputs
    ]
    per_token = kind == "token_classification"
    last = [make("Cast", ["rows"], ["logits"], to=types.FLOAT)]
    if not per_token:
        last = [
            make("Constant", [], ["tokens"], value_ints=[1]),
            make("ReduceSum", ["rows", "tokens"], ["sums"], keepdims=0),
            make("Cast", ["sums"], ["logits"], to=types.FLOAT),
        ]
    nodes = [
        make("Constant", [], ["axis"], value_ints=[2]),
        make("Mul", ["input_ids", "attention_mask"], ["seen"]),
        make("Unsqueeze", ["seen", "axis"], ["ids"]),
        make("Unsqueeze", ["token_type_ids", "axis"], ["kinds"]),
        make("Concat", ["ids", "kinds"], ["rows"], axis=2),
        *last,
    ]
    shape = ["batch", "length", 2] if per_token else ["batch", 2]
    save(folder, "head", nodes, inputs, [onnx.helper.make_tensor_value_info("logits", types.FLOAT, shape)])
    spec = replace(ENCODER, hidden_size=None, head=Head(kind, ("ids", "types"), "softmax"))
    return EncoderEngine(folder, spec, None, threads=1)


def test_logits_of_texts_know_the_second_text_of_a_pair(tmp_path: Path) -> None:
    engine = head_engine(tmp_path, "sequence_classification")
    found = engine.logits([[3, 4, 5], [6]], [[0, 1, 1], [0]])
    assert [row.tolist() for row in found] == [[12, 2], [6, 0]]
    assert [row.tolist() for row in engine.logits([[3, 4, 5], [6]])] == [[12, 0], [6, 0]]
    assert found[0].dtype == np.float32


def test_logits_of_tokens_end_with_the_text(tmp_path: Path) -> None:
    engine = head_engine(tmp_path, "token_classification")
    found = engine.logits([[3], [4, 5, 6], [7, 8]])
    assert [rows[:, 0].tolist() for rows in found] == [[3], [4, 5, 6], [7, 8]]
    engine.warm_up()


def test_engines_say_when_they_give_something_else(tmp_path: Path, encoder: EncoderEngine) -> None:
    engine = head_engine(tmp_path, "sequence_classification")
    with pytest.raises(
        BadInput, match=r"made for sequence classification.*logits of 2 labels, not embeddings"
    ):
        engine.embed([[1]])
    with pytest.raises(BadInput, match="gives embeddings; it has no labels"):
        encoder.logits([[1]])


@pytest.mark.parametrize("types", [[[0]], [[0, 1, 1]], [[0, 2]]])
def test_token_types_that_do_not_fit_are_refused(tmp_path: Path, types: list[list[int]]) -> None:
    with pytest.raises(BadInput, match=r"has 2 tokens, but . token types; each token needs one, 0 or 1"):
        head_engine(tmp_path, "sequence_classification").logits([[5, 6]], types)
