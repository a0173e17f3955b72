"""What cannot be used is an error for its sender alone; the others stream on, with the same tokens as ever."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from pipeline.client import complete, stream
from pipeline.serve import Server
from tests.e2e.conftest import MAX_QUEUE, metric, until

LONG = {"text_input": "The old man and the sea", "max_tokens": 700, "temperature": 0.0, "ignore_eos": True}

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "prompt longer than the limit": ({"text_input": "word " * 2000}, "tokens"),
    "empty prompt": ({"text_input": ""}, "empty"),
    "no prompt": ({"max_tokens": 3}, "text_input or messages"),
    "both prompts": ({"text_input": "a", "messages": "[]"}, "messages"),
    "negative max_tokens": ({"text_input": "a", "max_tokens": -1}, "max_tokens is -1"),
    "temperature NaN": ({"text_input": "a", "temperature": float("nan")}, "temperature is nan"),
    "temperature NaN in JSON": (
        {"text_input": "a", "sampling_parameters": '{"temperature": NaN}'},
        "temperature",
    ),
    "one megabyte of text": ({"text_input": "lorem " * 170_000}, "bytes"),
    "invalid UTF-8": ({"text_input": b"caf\xe9 au lait"}, "not valid UTF-8"),
    "unknown key": ({"text_input": "a", "sampling_parameters": '{"temprature": 1}'}, "temprature"),
    "sampling_parameters not JSON": ({"text_input": "a", "sampling_parameters": "{"}, "not JSON"),
    "sampling_parameters a list": ({"text_input": "a", "sampling_parameters": "[1]"}, "object"),
    "messages not JSON": ({"messages": "hello"}, "not JSON"),
    "messages without content": ({"messages": '[{"role": "user"}]'}, "content"),
    "top_p zero": ({"text_input": "a", "top_p": 0.0}, "top_p"),
    "deadline in the past": ({"text_input": "a", "timeout_seconds": -1.0}, "timeout_seconds"),
}


@pytest.fixture(scope="module")
def undisturbed(running: Server) -> str:
    """What the long stream gives when nobody else is there."""
    return "".join(chunk.text for chunk in stream(running.grpc, "demo", **LONG))


@pytest.fixture
def long_stream(idle: Server, undisturbed: str) -> Iterator[Future[str]]:
    """A stream that runs meanwhile; its text must be as undisturbed as ever."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: "".join(chunk.text for chunk in stream(idle.grpc, "demo", **LONG)))
        until(lambda: metric(idle, "slipway_running", model="demo") == 1, "the long stream runs")
        yield future
        assert future.result(timeout=60) == undisturbed


def test_each_bad_request_is_refused_alone(idle: Server, long_stream: Future[str]) -> None:
    for name, (values, message) in BAD.items():
        with pytest.raises(InferenceServerException) as streamed:
            list(stream(idle.grpc, "demo", **values))
        with pytest.raises(InferenceServerException) as unary:
            complete(idle.grpc, "demo_unary", **values)
        assert message in streamed.value.message(), name
        assert "INVALID_ARGUMENT: " in streamed.value.message(), name
        assert message in unary.value.message(), name
        assert unary.value.status() == "StatusCode.INVALID_ARGUMENT", name


def test_full_queue_answers_busy(idle: Server) -> None:
    """More requests than batch and queue hold: some are told to come again, all others are answered in full."""

    def ask(number: int) -> str:
        try:
            list(
                stream(
                    idle.grpc,
                    "demo",
                    text_input=f"Number {number}",
                    max_tokens=200,
                    temperature=0.0,
                    ignore_eos=True,
                )
            )
        except InferenceServerException as error:
            return error.message()
        return "answered"

    with ThreadPoolExecutor(16 + MAX_QUEUE + 24) as pool:
        told = list(pool.map(ask, range(16 + MAX_QUEUE + 24)))
    refused = [message for message in told if message != "answered"]
    assert told.count("answered") >= MAX_QUEUE
    assert refused
    assert all("UNAVAILABLE: " in message for message in refused)


def test_deadline_bounds_a_unary_request(idle: Server) -> None:
    values = {**LONG, "max_tokens": 1000}
    whole = complete(idle.grpc, "demo_unary", timeout_seconds=0.3, **values)
    assert whole.finish_reason == "timeout"
    assert 0 < whole.num_output_tokens < 1000


def test_deadline_ends_a_stream(idle: Server) -> None:
    chunks = list(stream(idle.grpc, "demo", timeout_seconds=0.3, **{**LONG, "max_tokens": 1000}))
    assert chunks[-1].finish_reason == "timeout"
    assert sum(chunk.num_output_tokens for chunk in chunks) < 1000


def test_min_tokens_is_a_fixed_length_or_nothing(idle: Server) -> None:
    """genai-perf asks for a fixed length by min_tokens and max_tokens, both as text."""
    fixed = json.dumps({"min_tokens": "20", "max_tokens": "20"})
    assert (
        complete(idle.grpc, "demo_unary", text_input="The", sampling_parameters=fixed).num_output_tokens == 20
    )
    with pytest.raises(InferenceServerException, match="min_tokens"):
        complete(idle.grpc, "demo_unary", text_input="The", sampling_parameters='{"min_tokens": 2}')
