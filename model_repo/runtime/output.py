"""What a client gets: pieces of a completion as they come, or the whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]


class TokenLogprob(NamedTuple):
    """Log-probability (natural logarithm) of a generated token before temperature, and of the likeliest ones."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token id, log-probability), likeliest first


@dataclass(frozen=True)
class Output:
    """News of one request. `text` and `token_ids` are what came since the last one; counts are totals so far.

    Text lags behind tokens while a character or a possible stop string is incomplete. `finish_reason` is set
    in the last output only. Seconds count from submission; `seconds_to_first_token` is None before the first.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    prompt_tokens: int
    completion_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    seconds_to_first_token: float | None = None
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class Completion:
    """A finished request, whole."""

    request_id: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...]
    seconds_to_first_token: float | None
    seconds: float
    error: str | None = None
