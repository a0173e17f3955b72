"""What a client asks for: a prompt and how to sample from it. Checked at construction."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from .errors import BadInput

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_LOGPROBS = 20
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen, and when to end.

    temperature 0 is greedy. top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off. `seed` None draws one a
    request. `stop` strings end the text before themselves. `logprobs` None: none; n: the chosen token's
    log-probability and the n likeliest. Raises BadInput naming the field, its value and the allowed range.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _whole("max_tokens", self.max_tokens, 1, None)
        _number("temperature", self.temperature, 0.0, None)
        _whole("top_k", self.top_k, 0, None)
        _number("top_p", self.top_p, 0.0, 1.0, above_low=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, None, above_low=True)
        if self.seed is not None:
            _whole("seed", self.seed, 0, MAX_SEED)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if not isinstance(self.ignore_eos, bool):
            raise BadInput(f"ignore_eos is {self.ignore_eos!r}; it must be true or false")
        if not all(isinstance(text, str) and 0 < len(text) <= MAX_STOP_CHARACTERS for text in self.stop):
            raise BadInput(
                f"stop is {self.stop!r:.200}; each must be text of 1 to {MAX_STOP_CHARACTERS} characters"
            )
        if len(self.stop) > MAX_STOP_STRINGS:
            raise BadInput(f"{len(self.stop)} stop strings; at most {MAX_STOP_STRINGS} are allowed")
        for token in self.stop_token_ids:
            _whole("stop_token_ids", token, 0, None)

    @property
    def greedy(self) -> bool:
        """Always the likeliest token."""
        return self.temperature == 0.0 or self.top_k == 1

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SamplingParams:
        """From a JSON object. Raises BadInput for unknown keys, by name, and for values out of range."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in values if key not in known]
        if unknown:
            raise BadInput(
                f"unknown sampling parameters {', '.join(map(repr, unknown))}; known: {', '.join(known)}"
            )
        given = dict(values)
        for name in ("stop", "stop_token_ids"):
            if name in given:
                if not isinstance(given[name], (list, tuple)):
                    raise BadInput(f"{name} is {given[name]!r:.200}; it must be a list")
                given[name] = tuple(given[name])
        return cls(**given)


@dataclass(frozen=True)
class Request:
    """One prompt, as token ids. `timeout_seconds` counts from submission; None waits as long as it takes.

    `encoder_input`: what the encoder of an encoder-decoder takes (`EncoderSpec.input`); the prompt is its decoder's.
    `prompt_embeds` float32 [rows, hidden]: what an image encoder gave for all images of the prompt, a row for each
    placeholder in it (`ImageEncoderSpec`).
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    timeout_seconds: float | None = None
    encoder_input: npt.NDArray[Any] | None = field(default=None, compare=False)
    prompt_embeds: npt.NDArray[Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.prompt_ids:
            raise BadInput("the prompt is empty; it needs at least one token")
        if self.timeout_seconds is not None:
            _number("timeout_seconds", self.timeout_seconds, 0.0, None, above_low=True)


def _whole(name: str, value: Any, low: int, high: int | None) -> None:
    fits = (
        isinstance(value, int)
        and not isinstance(value, bool)
        and value >= low
        and (high is None or value <= high)
    )
    if not fits:
        upper = "up" if high is None else str(high)
        raise BadInput(
            f"{name} is {value!r:.100}; it must be a whole number from {low} {'' if high is None else 'to '}{upper}"
        )


def _number(name: str, value: Any, low: float, high: float | None, above_low: bool = False) -> None:
    fits = (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (value > low if above_low else value >= low)
        and (high is None or value <= high)
    )
    if not fits:
        bounds = f"{'above' if above_low else 'at least'} {low:g}" + (
            "" if high is None else f" and at most {high:g}"
        )
        raise BadInput(f"{name} is {value!r:.100}; it must be a finite number {bounds}")
