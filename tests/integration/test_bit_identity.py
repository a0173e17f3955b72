"""A request's logits are the same bits alone and among 15 others, whoever they are and whenever they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

from model_repo.runtime.contract import EngineSpec, StepTensors
from model_repo.runtime.engine import Engine
from model_repo.runtime.engine_files import EngineFiles
from model_repo.runtime.executor import BucketRule
from model_repo.runtime.onnxruntime_executor import OnnxRuntimeExecutor
from model_repo.runtime.request import Request, SamplingParams
from model_repo.runtime.step_log import StepLog

COMMON = tuple(range(100, 150))
LENGTHS_AND_TOKENS = [(37, 9), (1, 14), (2, 30), (17, 8), (16, 8), (15, 8), (100, 6), (200, 5), (64, 7), (65, 7),
                      (33, 6), (7, 25), (5, 12), (250, 4), (31, 6), (90, 5)]  # fmt: skip


class Keeper:
    """An executor that keeps the logits of each request's tokens."""

    def __init__(self, inner: OnnxRuntimeExecutor) -> None:
        self._inner = inner
        self.engine: Engine
        self.logits: dict[str, list[npt.NDArray[np.float32]]] = {}

    @property
    def bucket_rule(self) -> BucketRule:
        return self._inner.bucket_rule

    def run(self, step: StepTensors) -> npt.NDArray[np.float32]:
        logits = self._inner.run(step)
        (plan,) = self.engine._scheduler.in_flight
        wanted = [entry.sequence.request_id for entry in plan.entries if entry.num_logit_rows]
        for request_id, row in zip(wanted, logits, strict=False):
            self.logits.setdefault(request_id, []).append(row.copy())
        return logits


class Outcome(NamedTuple):
    """Logits of each generated token by request id, and the steps."""

    logits: dict[str, list[npt.NDArray[np.float32]]]
    log: StepLog


def run(
    folder: Path, spec: EngineSpec, threads: int, requests: Sequence[Request], joins_at: Sequence[int]
) -> Outcome:
    """Runs requests of which each joins before a step of its own."""
    assert spec.limits is not None
    keeper, log = Keeper(OnnxRuntimeExecutor(folder, spec, spec.limits.num_blocks, threads)), StepLog()
    engine = keeper.engine = Engine(keeper, spec, step_log=log)
    step = 0
    while step <= max(joins_at) or engine._has_work():
        for request, at in zip(requests, joins_at, strict=True):
            if at == step:
                engine.submit(request, lambda _: None)
        engine.step()
        step += 1
    return Outcome(keeper.logits, log)


def requests_of(generator: np.random.Generator, vocab_size: int) -> list[Request]:
    """16 requests of all kinds of lengths; every third prompt begins with the same tokens."""
    made = []
    for index, (length, new_tokens) in enumerate(LENGTHS_AND_TOKENS):
        own = tuple(generator.integers(0, vocab_size, length).tolist())
        prompt = (COMMON + own)[:length] if index % 3 == 0 else own
        sampling = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
        made.append(Request(f"r{index}", prompt, sampling))
    return made


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("token_budget", [512, 48])
def test_logits_are_the_same_bits_alone_and_among_fifteen_others(
    engine_folder: Path, threads: int, token_budget: int
) -> None:
    spec = EngineFiles.read(engine_folder).spec
    assert spec.limits is not None
    requests = requests_of(np.random.default_rng(token_budget), spec.vocab_size)
    tight = replace(spec, limits=replace(spec.limits, token_budget=token_budget))
    together = run(engine_folder, tight, threads, requests, [index // 3 for index in range(16)])
    assert max(len(step.rows) for step in together.log.steps) >= (12 if token_budget == 512 else 8)
    for request in requests:
        alone = run(engine_folder, spec, threads, [request], [0])
        expected, got = alone.logits[request.request_id], together.logits[request.request_id]
        assert len(got) == len(expected) == request.sampling.max_tokens
        for token, (one, other) in enumerate(zip(expected, got, strict=True)):
            assert (one.view(np.int32) == other.view(np.int32)).all(), (request.request_id, token)


def test_one_and_two_threads_give_the_same_bits(engine_folder: Path) -> None:
    spec = EngineFiles.read(engine_folder).spec
    requests = requests_of(np.random.default_rng(1), spec.vocab_size)[5:10]
    one = run(engine_folder, spec, 1, requests, [0] * 5)
    two = run(engine_folder, spec, 2, requests, [0] * 5)
    for request in requests:
        pairs = zip(one.logits[request.request_id], two.logits[request.request_id], strict=True)
        assert all((a.view(np.int32) == b.view(np.int32)).all() for a, b in pairs)
