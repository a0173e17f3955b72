"""The CPU engine behind a thread that stands in for a device: overlapped steps give the tokens of steps in a row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from model_repo.runtime.engine import Engine
from model_repo.runtime.engine_files import EngineFiles
from model_repo.runtime.onnxruntime_executor import OnnxRuntimeExecutor
from model_repo.runtime.output import Output
from model_repo.runtime.request import Request, SamplingParams
from tests.runtime.launching import ThreadedExecutor

LENGTHS_AND_TOKENS = [(37, 60), (1, 70), (2, 80), (60, 60), (16, 70), (80, 50), (34, 60), (5, 80)]
STOPPED, CANCELLED = 2, 4


class Outcome(NamedTuple):
    """What a request got."""

    token_ids: tuple[int, ...]
    text: str
    reason: str | None


def requests_of(vocab_size: int, sampling: SamplingParams, stop: str | None) -> list[Request]:
    """Requests of which some share a prefix; `STOPPED` ends at a stop string, if there is one."""
    generator = np.random.default_rng(8)
    common = tuple(range(100, 160))
    made = []
    for index, (length, tokens) in enumerate(LENGTHS_AND_TOKENS):
        own = tuple(generator.integers(0, vocab_size, length).tolist())
        given = replace(sampling, max_tokens=tokens, seed=index)
        if index == STOPPED and stop is not None:
            given = replace(given, stop=(stop,))
        if index == 6:
            given = replace(given, repetition_penalty=1.3)
        made.append(Request(str(index), (common + own)[:length] if index % 3 == 0 else own, given))
    return made


def outcomes(engine: Engine, requests: list[Request], cancels: bool = False) -> list[Outcome]:
    """Half of the requests join in the fourth step; `CANCELLED` is cancelled after five of its tokens."""
    outputs: list[list[Output]] = [[] for _ in requests]
    for step in range(2000):
        for index, request in enumerate(requests):
            if step == 4 * (index % 2):
                engine.submit(request, outputs[index].append)
        if cancels and len(outputs[CANCELLED]) == 5:
            engine.cancel(str(CANCELLED))
        if not engine.step() and step > 4:
            break
    assert engine.stats()["kv_blocks_used"] == 0
    return [
        Outcome(
            tuple(token for one in made for token in one.token_ids),
            "".join(one.text for one in made),
            made[-1].finish_reason,
        )
        for made in outputs
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.1])
def test_overlapped_steps_give_the_same_tokens(engine_folder: Path, temperature: float) -> None:
    """Few blocks (preemption), a small budget (chunks), seeds, a stop string, a cancel, one repetition penalty."""
    files = EngineFiles.read(engine_folder)
    assert files.spec.limits is not None
    block_size = files.spec.limits.block_size
    tight = replace(
        files.spec, limits=replace(files.spec.limits, token_budget=48, num_blocks=320 // block_size)
    )
    sampling = SamplingParams(temperature=temperature, top_k=40, ignore_eos=True)
    executor = OnnxRuntimeExecutor(engine_folder, files.spec, files.spec.limits.num_blocks, 1)

    plain = outcomes(
        Engine(executor, files.spec, files.tokenizer), requests_of(files.spec.vocab_size, sampling, None)
    )
    stop = plain[STOPPED].text[10:16]
    requests = requests_of(files.spec.vocab_size, sampling, stop)
    expected = outcomes(Engine(executor, files.spec, files.tokenizer), requests)
    assert expected[STOPPED].reason == "stop"
    assert expected[STOPPED].text == plain[STOPPED].text[: plain[STOPPED].text.index(stop)]

    device = ThreadedExecutor(executor)
    engine = Engine(device, tight, files.tokenizer)
    got = outcomes(engine, requests, cancels=True)
    assert engine.stats()["preemptions"] > 0
    assert device.num_carried > 60
    for index, (one, other) in enumerate(zip(got, expected, strict=True)):
        if index == CANCELLED:
            assert one.reason == "cancelled"
            assert 5 <= len(one.token_ids) < 70
            assert one.token_ids == other.token_ids[: len(one.token_ids)]
        else:
            assert one == other
