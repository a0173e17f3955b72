"""Requests as tensors: what they mean, and what is refused in words."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from model_repo.backends.calls import Call, parse
from model_repo.runtime.errors import BadInput


def call(parameters: dict[str, Any] | None = None, **values: Any) -> Call:
    """Parses plain values as the tensors that Triton gives a Python model."""
    kinds: dict[type, Any] = {str: object, bytes: object, bool: np.bool_, int: np.int32, float: np.float32}
    arrays = {}
    for name, value in values.items():
        items = value if isinstance(value, list) else [value]
        encoded = [item.encode() if isinstance(item, str) else item for item in items]
        arrays[name] = np.array(encoded, dtype=kinds[type(items[0])])
    return parse(arrays, parameters or {}, default_max_tokens=9)


def test_defaults() -> None:
    parsed = call(text_input="hi")
    assert (parsed.text, parsed.messages, parsed.stream, parsed.timeout_seconds) == ("hi", None, False, None)
    assert parsed.sampling.max_tokens == 9
    assert parsed.sampling.logprobs is None


@pytest.mark.parametrize(
    ("values", "echo"),
    [
        ({}, True),  # as the vLLM backend: a whole answer begins with the prompt
        ({"stream": True}, False),
        ({"exclude_input_in_output": True}, False),
        ({"stream": True, "exclude_input_in_output": False}, True),
    ],
)
def test_echo(values: dict[str, Any], echo: bool) -> None:
    assert call(text_input="hi", **values).echo is echo


def test_tensors_win_over_json_and_json_over_request_parameters() -> None:
    parsed = call(
        parameters={"max_tokens": 1, "top_k": 1, "temperature": 0.5},
        text_input="hi",
        sampling_parameters=json.dumps({"max_tokens": 2, "top_k": 2}),
        max_tokens=3,
    )
    assert (parsed.sampling.max_tokens, parsed.sampling.top_k, parsed.sampling.temperature) == (3, 2, 0.5)


def test_numbers_sent_as_text() -> None:
    """So the vLLM backend's own sample client sends them."""
    text = json.dumps({"temperature": "0.1", "top_p": "0.95", "max_tokens": "100", "ignore_eos": "true"})
    sampling = call(text_input="hi", sampling_parameters=text).sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens, sampling.ignore_eos) == (
        0.1,
        0.95,
        100,
        True,
    )


def test_stop_words() -> None:
    assert call(text_input="a", stop_words=["x", "yz"]).sampling.stop == ("x", "yz")
    assert call(text_input="a", sampling_parameters='{"stop": "x"}').sampling.stop == ("x",)
    assert call(text_input="a", sampling_parameters='{"stop_words": ["x"]}').sampling.stop == ("x",)


@pytest.mark.parametrize("name", ["return_log_probs", "return_logprobs", "return_cumulative_logprob"])
def test_logprobs_by_flag(name: str) -> None:
    assert call(text_input="a", **{name: True}).sampling.logprobs == 0
    assert call(text_input="a", **{name: False}).sampling.logprobs is None
    assert call(text_input="a", top_logprobs=3, **{name: True}).sampling.logprobs == 3


def test_messages() -> None:
    messages = [{"role": "user", "content": "hi"}]
    parsed = call(messages=json.dumps(messages))
    assert (parsed.messages, parsed.text, parsed.echo) == (messages, None, False)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "text_input or messages"),
        ({"text_input": ""}, "empty"),
        ({"text_input": ["a", "b"]}, "2 strings"),
        ({"text_input": b"\xff"}, "0xff at 0"),
        ({"text_input": "a", "max_tokens": [1, 2]}, "2 values"),
        ({"text_input": "a", "temperature": float("inf")}, "temperature is inf"),
        ({"text_input": "a", "timeout_seconds": float("nan")}, "timeout_seconds is nan"),
        ({"text_input": "a", "sampling_parameters": '{"a": 1, "b": 2}'}, "'a', 'b'"),
        ({"text_input": "a", "sampling_parameters": '{"max_tokens": "many"}'}, "max_tokens is 'many'"),
        ({"text_input": "a", "sampling_parameters": '{"n": 2}'}, "n must be 1"),
        ({"text_input": "a", "sampling_parameters": "3"}, "JSON object"),
        ({"messages": "[]"}, "at least one"),
        ({"messages": '[{"role": "user", "content": 3}]'}, "content"),
    ],
)
def test_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as refused:
        call(**values)
    assert said in str(refused.value)
