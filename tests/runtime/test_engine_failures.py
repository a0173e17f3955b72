"""Failures end the requests that they belong to, and no others."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from model_repo.runtime.contract import StepTensors
from model_repo.runtime.engine import Engine
from model_repo.runtime.output import Output
from model_repo.runtime.request import SamplingParams
from tests.runtime.drive import Client, fake_engine, greedy, request
from tests.runtime.fake_executor import FakeExecutor, fake_spec, greedy_completion

PROMPT = (1, 2, 3)
NEXT = greedy_completion(PROMPT, 12)


def test_a_sink_that_raises_ends_its_own_request_only(caplog: pytest.LogCaptureFixture) -> None:
    engine = fake_engine()
    client = Client(engine)
    calls: list[Output] = []

    def broken(output: Output) -> None:
        calls.append(output)
        raise ConnectionError("the client has gone")

    engine.submit(request("broken", PROMPT, greedy(20)), broken)
    client.submit(request("fine", PROMPT, greedy(6)))
    with caplog.at_level(logging.ERROR, logger="slipway"):
        client.run()
    assert len(calls) == 2
    assert calls[-1].finish_reason == "cancelled"
    assert client.tokens("fine") == NEXT[:6]
    assert "the client has gone" in caplog.text
    assert engine.stats()["kv_blocks_used"] == 0


def test_a_step_that_fails_ends_its_requests_and_no_others() -> None:
    spec = fake_spec(max_batch=2)
    failing = [False]

    def before_run(_: StepTensors) -> None:
        if failing[0]:
            failing[0] = False
            raise MemoryError("no room for the step")

    engine = Engine(FakeExecutor(spec, before_run=before_run), spec)
    client = Client(engine)
    for name in ("a", "b", "waits"):
        client.submit(request(name, PROMPT, greedy(5)))
    engine.step()
    failing[0] = True
    assert engine.step()
    for name in ("a", "b"):
        last = client.outputs[name][-1]
        assert last.finish_reason == "error"
        assert last.error == "the engine failed in this request's step: no room for the step"
    assert engine.stats()["kv_blocks_used"] == 0
    client.run()
    assert client.tokens("waits") == NEXT[:5]


@pytest.mark.parametrize("params", [greedy(5), SamplingParams(max_tokens=5, temperature=0.7, seed=1)])
def test_logits_that_are_no_numbers_end_their_own_request(params: SamplingParams) -> None:
    spec = fake_spec(max_batch=2)

    class Broken(FakeExecutor):
        """Gives NaN in the first row of the third step."""

        steps = 0

        def run(self, step: StepTensors) -> npt.NDArray[np.float32]:
            logits = super().run(step)
            self.steps += 1
            if self.steps == 3:
                logits[0, 5] = np.nan
            return logits

    engine = Engine(Broken(spec), spec)
    client = Client(engine)
    client.submit(request("a", PROMPT, params))
    client.submit(request("b", PROMPT, greedy(5)))
    client.run()
    last = client.outputs["a"][-1]
    assert (last.finish_reason, last.completion_tokens) == ("error", 2)
    assert "not numbers" in str(last.error)
    assert client.tokens("b") == NEXT[:5]
    assert engine.stats()["kv_blocks_used"] == 0


class NoTokenizer:
    """Fails on one token; otherwise one character a token."""

    def __init__(self, bad_token: int) -> None:
        self.bad_token = bad_token

    def decode(self, token_ids: Any) -> str:
        if self.bad_token in token_ids:
            raise ValueError("no such token")
        return "".join(chr(65 + token) for token in token_ids)


def test_a_tokenizer_that_fails_ends_the_request_of_its_tokens_only() -> None:
    engine = fake_engine(tokenizer=NoTokenizer(NEXT[1]))
    client = Client(engine)
    client.submit(request("bad", PROMPT, greedy(6)))
    client.submit(request("fine", (9, 9), greedy(6)))
    client.run()
    assert client.reason("bad") == "error"
    assert "no such token" in (client.outputs["bad"][-1].error or "")
    assert client.tokens("bad") == NEXT[:2]
    assert client.tokens("fine") == greedy_completion((9, 9), 6)
    assert NEXT[1] not in client.tokens("fine")
