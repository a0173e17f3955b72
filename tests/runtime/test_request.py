"""Requests that make no sense are refused in words: what was given, and what is allowed."""

from __future__ import annotations

import math
from typing import Any

import pytest

from model_repo.runtime.errors import BadInput
from model_repo.runtime.request import MAX_LOGPROBS, MAX_SEED, Request, SamplingParams


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("max_tokens", 0, "1 up"),
        ("max_tokens", -5, "1 up"),
        ("max_tokens", 2.5, "1 up"),
        ("max_tokens", True, "1 up"),
        ("max_tokens", "7", "1 up"),
        ("temperature", math.nan, "at least 0"),
        ("temperature", math.inf, "at least 0"),
        ("temperature", -0.1, "at least 0"),
        ("temperature", "hot", "at least 0"),
        ("top_k", -1, "0 up"),
        ("top_k", 1.0, "0 up"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.1, "above 0 and at most 1"),
        ("min_p", -0.1, "at least 0 and at most 1"),
        ("min_p", 2, "at least 0 and at most 1"),
        ("repetition_penalty", 0, "above 0"),
        ("repetition_penalty", math.nan, "above 0"),
        ("seed", -1, f"0 to {MAX_SEED}"),
        ("seed", 2**64, f"0 to {MAX_SEED}"),
        ("logprobs", 21, f"0 to {MAX_LOGPROBS}"),
        ("logprobs", True, f"0 to {MAX_LOGPROBS}"),
        ("ignore_eos", 1, "true or false"),
        ("stop", [""], "1 to 256 characters"),
        ("stop", ["x" * 257], "1 to 256 characters"),
        ("stop", [3], "1 to 256 characters"),
        ("stop", ["x"] * 17, "at most 16"),
        ("stop", "END", "a list"),
        ("stop_token_ids", [-1], "0 up"),
        ("stop_token_ids", 5, "a list"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_name_and_the_range(
    name: str, value: Any, allowed: str
) -> None:
    with pytest.raises(BadInput) as raised:
        SamplingParams.from_json({name: value})
    message = str(raised.value)
    assert name in message or "stop strings" in message
    assert allowed in message
    if not isinstance(value, list):
        assert repr(value) in message


def test_unknown_keys_are_refused_by_name() -> None:
    with pytest.raises(BadInput) as raised:
        SamplingParams.from_json({"temperature": 1.0, "beam_width": 4, "temprature": 0})
    assert "'beam_width', 'temprature'" in str(raised.value)
    assert "repetition_penalty" in str(raised.value)


def test_values_at_the_ends_of_their_ranges_are_taken() -> None:
    params = SamplingParams.from_json(
        {
            "max_tokens": 1,
            "temperature": 0,
            "top_k": 0,
            "top_p": 1,
            "min_p": 1,
            "seed": MAX_SEED,
            "logprobs": MAX_LOGPROBS,
            "stop": ["x" * 256],
            "stop_token_ids": [0, 7],
        }
    )
    assert params.stop == ("x" * 256,)
    assert params.stop_token_ids == (0, 7)
    assert params.greedy


def test_empty_prompts_and_timeouts_without_sense_are_refused() -> None:
    with pytest.raises(BadInput, match="the prompt is empty"):
        Request("r", (), SamplingParams())
    for seconds in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(BadInput, match=r"timeout_seconds is .* above 0"):
            Request("r", (1,), SamplingParams(), seconds)


def test_messages_stay_short_whatever_was_given() -> None:
    with pytest.raises(BadInput) as raised:
        SamplingParams.from_json({"temperature": "x" * 1_000_000})
    assert len(str(raised.value)) < 400
