"""From the tensors of one request to a validated call: prompt, sampling, echo, stream, deadline."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.errors import BadInput
from ..runtime.request import SamplingParams
from .interface import BEGINNING

Arrays = Mapping[str, npt.NDArray[Any]]

SAMPLING_TENSORS: Mapping[str, str] = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
    "ignore_eos": "ignore_eos",
    "top_logprobs": "logprobs",
    "stop_words": "stop",
}
"""Input tensor -> field of SamplingParams."""

NUMBERS: Mapping[str, type[int] | type[float]] = {
    "max_tokens": int,
    "min_tokens": int,
    "top_k": int,
    "seed": int,
    "logprobs": int,
    "n": int,
    "temperature": float,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
}
"""Keys of sampling_parameters that clients of the vLLM backend send as text ("0.1") as well as numbers."""

WANTS_LOGPROBS = ("return_log_probs", "return_logprobs", "return_cumulative_logprob")


@dataclass(frozen=True)
class Call:
    """One request to a decoder. One of `text` and `messages` is set. No `timeout_seconds`: the default."""

    text: str | None
    messages: list[dict[str, Any]] | None
    sampling: SamplingParams
    stream: bool
    echo: bool
    timeout_seconds: float | None
    beginning: str | None = None
    """What the completion of an encoder-decoder begins with; None for what the checkpoint says."""


def parse(
    arrays: Arrays,
    parameters: Mapping[str, Any],
    default_max_tokens: int,
    needs_text: bool = True,
    takes_images: bool = False,
) -> Call:
    """Reads a request. `arrays` by tensor name; `parameters` are Triton's request parameters.

    `needs_text` off: there may be neither text nor messages. `takes_images`: a message's content may be a list of
    texts and places of images. Raises BadInput naming what cannot be used.
    """
    text = _text(arrays, "text_input")
    messages = _messages(_text(arrays, "messages"), takes_images)
    if (text is None) == (messages is None) and (needs_text or text is not None):
        raise BadInput("send text_input or messages, one of them")
    if text == "":
        raise BadInput("text_input is empty; a prompt needs at least one character")
    stream = bool(_scalar(arrays, "stream", False))
    exclude = _scalar(arrays, "exclude_input_in_output", stream or messages is not None)
    timeout = _scalar(arrays, "timeout_seconds", None)
    if timeout is not None and not (math.isfinite(timeout) and timeout > 0):
        raise BadInput(f"timeout_seconds is {timeout}; it must be a positive number")
    return Call(
        text=text,
        messages=messages,
        sampling=_sampling(arrays, parameters, default_max_tokens),
        stream=stream,
        echo=not exclude,
        timeout_seconds=timeout,
        beginning=_text(arrays, BEGINNING.name),
    )


def _sampling(arrays: Arrays, parameters: Mapping[str, Any], default_max_tokens: int) -> SamplingParams:
    """Request parameters, then the sampling_parameters JSON, then single tensors: the later one wins."""
    values: dict[str, Any] = {"max_tokens": default_max_tokens}
    values.update(_cleaned(parameters, "request parameters"))
    text = _text(arrays, "sampling_parameters")
    if text:
        try:
            given = json.loads(text)
        except json.JSONDecodeError as error:
            raise BadInput(f"sampling_parameters is not JSON: {error}") from None
        if not isinstance(given, dict):
            raise BadInput(f"sampling_parameters must be a JSON object, not {type(given).__name__}")
        values.update(_cleaned(given, "sampling_parameters"))
    for name, key in SAMPLING_TENSORS.items():
        if name == "stop_words":
            if name in arrays:
                values[key] = [decoded(word, name) for word in arrays[name].reshape(-1)]
        elif name in arrays:
            values[key] = _scalar(arrays, name, None)
    if values.get("logprobs") is None and any(_scalar(arrays, name, False) for name in WANTS_LOGPROBS):
        values["logprobs"] = 0
    return SamplingParams.from_json(values)


def _cleaned(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Numbers sent as text become numbers; what vLLM's clients send and we do another way is translated."""
    values = dict(given)
    for name, kind in NUMBERS.items():
        if isinstance(values.get(name), str):
            try:
                values[name] = kind(values[name])
            except ValueError:
                raise BadInput(f"{where}: {name} is {values[name]!r}; it must be a number") from None
    for name, value in values.items():
        if isinstance(value, str) and value.lower() in ("true", "false"):
            values[name] = value.lower() == "true"
    if "stop_words" in values:
        values["stop"] = values.pop("stop_words")
    if isinstance(values.get("stop"), str):
        values["stop"] = [values["stop"]]
    if values.pop("n", 1) != 1:
        raise BadInput(f"{where}: n must be 1; send the request several times for several answers")
    min_tokens = values.pop("min_tokens", 0)
    if min_tokens:
        if min_tokens != values.get("max_tokens"):
            raise BadInput(f"{where}: min_tokens must equal max_tokens (a fixed length) or be left out")
        values["ignore_eos"] = True
    return values


def _messages(text: str | None, takes_images: bool) -> list[dict[str, Any]] | None:
    if text is None:
        return None
    wanted = 'messages must be a JSON list of {"role": "...", "content": "..."}'
    if takes_images:
        wanted += ', content may be a list of {"type": "image"} and {"type": "text", "text": "..."}'
    try:
        messages = json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"{wanted}; it is not JSON: {error}") from None
    if not isinstance(messages, list) or not messages:
        raise BadInput(f"{wanted}, with at least one entry")
    for message in messages:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise BadInput(f"{wanted}; one entry is {message!r:.100}")
        content = message["content"]
        parts = takes_images and isinstance(content, list) and all(map(_is_part, content))
        if not isinstance(message["role"], str) or not (isinstance(content, str) or parts):
            raise BadInput(f"{wanted}; one entry is {message!r:.100}")
    return messages


def _is_part(part: Any) -> bool:
    """Whether it is a text or an image's place within a message."""
    if part == {"type": "image"}:
        return True
    is_text = isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text"
    return is_text and isinstance(part["text"], str)


def _text(arrays: Arrays, name: str) -> str | None:
    if name not in arrays:
        return None
    value = arrays[name].reshape(-1)
    if value.size != 1:
        raise BadInput(f"{name} holds {value.size} strings; send one a request")
    return decoded(value[0], name)


def decoded(value: bytes | str, name: str) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{name} is not valid UTF-8: byte {value[error.start]:#04x} at {error.start}"
        ) from None


def _scalar(arrays: Arrays, name: str, default: Any) -> Any:
    """The only element of a tensor as a Python value, or `default` when the tensor was not sent."""
    if name not in arrays:
        return default
    value = arrays[name].reshape(-1)
    if value.size != 1:
        raise BadInput(f"{name} holds {value.size} values; send one")
    return np.asarray(value)[0].item()
