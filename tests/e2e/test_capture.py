"""Requests that a running server keeps are calibration data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpcclient

from calibration.samples import open_samples
from model_repo.runtime.engine_files import EngineFiles
from pipeline.client import embed, stream, tensor
from pipeline.serve import Server
from tests.e2e.conftest import until

PROMPTS = [
    f"The old man had {number} boats, and the sea was {number} miles away; so he walked"
    for number in range(30)
]


def kept(path: Path) -> list[list[int]]:
    """Token ids of each request in a capture."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["input_ids"] for line in lines[1:]]


def test_what_clients_sent_calibrates_the_model(
    idle: Server, builds: dict[str, Path], captures: Path
) -> None:
    files = EngineFiles.read(builds["demo"], verify=False)
    assert files.tokenizer is not None
    wanted = [files.tokenizer.encode(prompt) for prompt in PROMPTS]
    for prompt in PROMPTS:
        list(stream(idle.grpc, "demo", text_input=prompt, max_tokens=1, temperature=0.0))
    path = captures / "demo.jsonl"
    until(lambda: kept(path)[-len(wanted) :] == wanted, "all requests are kept")
    samples = open_samples(
        path, files.spec, vocab_size=files.spec.vocab_size, max_length=files.spec.max_length
    )
    assert set(map(tuple, wanted)) <= set(samples.items)


def test_texts_of_an_encoder_are_kept_too(idle: Server, builds: dict[str, Path], captures: Path) -> None:
    texts = ["a harbour in the morning", "two harbours in the evening"]
    embed(idle.grpc, "minilm", texts)
    tokenizer = EngineFiles.read(builds["minilm"], verify=False).tokenizer
    assert tokenizer is not None
    assert kept(captures / "minilm.jsonl")[-2:] == [tokenizer.encode(text) for text in texts]


def test_tensors_are_kept_as_the_engine_got_them(
    running: Server, builds: dict[str, Path], captures: Path
) -> None:
    random = np.random.default_rng(4)
    features, kind = random.standard_normal((12, 6), dtype=np.float32), random.integers(0, 10, (12, 1))
    with grpcclient.InferenceServerClient(running.grpc) as client:
        for rows in (slice(0, 5), slice(5, 12)):
            given = {"features": features[rows], "kind": kind[rows]}
            client.infer("scorer", [tensor(name, array) for name, array in given.items()])
    files = EngineFiles.read(builds["scorer"], verify=False)
    samples = open_samples(captures / "scorer.jsonl", files.spec)
    found = {item["features"].tobytes(): item["kind"] for item in samples.items}
    for row in range(12):
        assert found[features[row : row + 1].tobytes()] == kind[row]
