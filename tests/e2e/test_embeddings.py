"""MiniLM through the server: right numbers, and texts that arrive together are one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from model_repo.runtime.encoder import EncoderEngine
from pipeline.client import embed, tensor
from pipeline.serve import Server
from tests.e2e.conftest import metric, until

TEXTS = [
    " ".join(["sea", "and", "sun", "or", "rain", "with", "wind"][: number % 7 + 1] * number)
    for number in range(1, 9)
]


def send(client: grpcclient.InferenceServerClient, texts: list[str], answers: list[Any]) -> None:
    array = np.array([[text.encode()] for text in texts], dtype=object)
    client.async_infer(
        "minilm", [tensor("text_input", array)], lambda result, error: answers.append(error or result)
    )


def batches(running: Server) -> dict[str, float]:
    return {
        edge: metric(running, "slipway_batch_size_bucket", model="minilm", le=edge)
        for edge in ("4", "8", "+Inf")
    }


def test_eight_texts_that_arrive_together_are_one_batch(running: Server) -> None:
    """Of 8 different lengths, sent while the engine is busy with a full batch, so that they all wait."""
    with grpcclient.InferenceServerClient(running.grpc) as client:
        embed(running.grpc, "minilm", ["warm"])
        before, total = batches(running), metric(running, "slipway_batch_size_sum", model="minilm")
        answers: list[Any] = []
        tokenized = metric(running, "nv_inference_request_success", model="minilm_preprocess")
        send(client, ["word " * 120] * 64, answers)
        until(
            lambda: metric(running, "nv_inference_request_success", model="minilm_preprocess") > tokenized,
            "the full batch is in the engine",
        )
        for text in TEXTS:
            send(client, [text], answers)
        until(lambda: len(answers) == 9, "all are answered")
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    until(
        lambda: metric(running, "slipway_batch_size_sum", model="minilm") == total + 72,
        "both batches counted",
    )
    after = batches(running)
    assert after["+Inf"] - before["+Inf"] == 2
    assert after["4"] - before["4"] == 0
    assert after["8"] - before["8"] == 1


def test_embeddings_are_the_engines(running: Server, builds: dict[str, Path]) -> None:
    engine = EncoderEngine.load(builds["minilm"], threads=1)
    assert engine.tokenizer is not None
    expected = np.concatenate([engine.embed([engine.tokenizer.encode(text)]) for text in TEXTS])
    together = embed(running.grpc, "minilm", TEXTS)
    assert together.shape == (8, 384)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)


def test_embeddings_mean_something(running: Server) -> None:
    ship, boat, bread = embed(
        running.grpc,
        "minilm",
        [
            "A ship sailed across the stormy sea.",
            "The boat crossed the ocean.",
            "She baked bread in the kitchen.",
        ],
    )
    assert ship @ boat > 0.5
    assert ship @ bread < 0.25


@pytest.mark.parametrize(("text", "message"), [("word " * 400, "tokens"), ("a" * 1_000_000, "bytes")])
def test_text_that_is_too_long(running: Server, text: str, message: str) -> None:
    with pytest.raises(InferenceServerException, match=message):
        embed(running.grpc, "minilm", [text])
