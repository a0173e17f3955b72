"""The demo model in codes behind the real server: the answers of its own engine loop, alone and many at a time."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from model_repo.runtime.engine import Engine
from model_repo.runtime.request import Request, SamplingParams
from pipeline.client import stream
from pipeline.serve import Server
from tests.e2e.conftest import QUANTIZED

PROMPTS = (
    "The old man",
    "She",
    "The captain of the ship",
    "In the garden",
    '"I cannot believe it," said',
    "It was",
)
TOKENS = 24


@pytest.mark.parametrize("name", QUANTIZED)
def test_the_server_gives_what_the_engine_of_codes_gives(
    idle: Server, builds: dict[str, Path], name: str
) -> None:
    manifest = json.loads((builds[name] / "engine.json").read_text())
    assert manifest["engine"]["precision"] == QUANTIZED[name]["precision"]
    caches = {spec["dtype"] for spec in manifest["engine"]["kv"]}
    assert caches == {QUANTIZED[name].get("kv_dtype", "float32")}
    engine = Engine.load(builds[name], threads=1)
    assert engine.tokenizer is not None
    sampling = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    requests = [
        Request(f"r{place}", tuple(engine.tokenizer.encode(prompt)), sampling)
        for place, prompt in enumerate(PROMPTS)
    ]
    wanted = [completion.text for completion in engine.generate(requests)]

    def served(prompt: str) -> str:
        chunks = stream(
            idle.grpc, name, text_input=prompt, max_tokens=TOKENS, temperature=0.0, ignore_eos=True
        )
        return "".join(chunk.text for chunk in chunks)

    assert served(PROMPTS[0]) == wanted[0]
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert list(pool.map(served, PROMPTS)) == wanted
    floats = Engine.load(builds["demo"], threads=1)
    assert [
        completion.text for completion in floats.generate(requests)
    ] != wanted  # another engine, not the same one
