"""What a client gets: pieces of a completion as they come, or the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]


class TokenLogprob(NamedTuple):
    """Log-probability (natural logarithm) of a generated token before temperature, and of the likeliest ones."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token id, log-probability), likeliest first


class Output(NamedTuple):
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

    @classmethod
    def of(cls, prompt_ids: tuple[int, ...], outputs: Sequence[Output]) -> Completion:
        """All outputs of one request, put together; the last one has its finish_reason."""
        last = outputs[-1]
        assert last.finish_reason is not None
        return cls(
            request_id=last.request_id,
            prompt_ids=prompt_ids,
            token_ids=tuple(token for output in outputs for token in output.token_ids),
            text="".join(output.text for output in outputs),
            finish_reason=last.finish_reason,
            logprobs=tuple(logprob for output in outputs for logprob in output.logprobs),
            seconds_to_first_token=last.seconds_to_first_token,
            seconds=last.seconds,
            error=last.error,
        )
