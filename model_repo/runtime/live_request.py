"""A request inside the loop: its sequence, its text so far, and where its outputs go."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .detokenizer import Detokenizer
from .output import FinishReason, Output, TokenLogprob
from .prompt_embeds import PromptEmbeds
from .request import Request
from .sampler import Row, Sampled
from .sequence import Sequence

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

Sink = Callable[[Output], None]
"""Takes a request's outputs as they come; called on the loop's thread, so it must not wait."""

CONTEXT_TOKENS = 4
"""Tokens of the prompt that the detokenizer sees before the first generated one."""


class LiveRequest:
    """Belongs to the loop's thread once it is submitted."""

    def __init__(
        self,
        request: Request,
        sequence: Sequence,
        sink: Sink,
        seed: int,
        submitted_at: float,
        tokenizer: Tokenizer | None,
        embeds: PromptEmbeds | None = None,
    ) -> None:
        self.request = request
        self.sequence = sequence
        self.sink = sink
        self.submitted_at = submitted_at
        self.embeds = embeds
        self.seconds_to_first_token: float | None = None
        self._seed = seed
        self._detokenizer: Detokenizer | None = None
        if tokenizer is not None:
            context = request.prompt_ids[-CONTEXT_TOKENS:]
            self._detokenizer = Detokenizer(tokenizer, request.sampling.stop, context)
        self._seen = set(request.prompt_ids) if request.sampling.repetition_penalty != 1.0 else None
        self._sent_tokens = 0
        self._taken: Sampled | None = None
        self._text = ""
        self._logprobs: list[TokenLogprob] = []

    def sampling_row(self, position: int) -> Row:
        """How to sample this request's output token `position`, 0 for the first."""
        seen = None if self._seen is None else np.fromiter(self._seen, np.int64, len(self._seen))
        return Row(self.request.sampling, self._seed, position, seen)

    def take(self, sampled: Sampled) -> None:
        """Remembers what was sampled until it is delivered."""
        self._taken = sampled

    def advance(self) -> bool:
        """Turns the taken token into text. True when a stop string ended the text."""
        assert self._taken is not None
        token_id, logprob = self._taken
        self._taken = None
        if self._seen is not None:
            self._seen.add(token_id)
        if logprob is not None:
            self._logprobs.append(logprob)
        if self._detokenizer is None:
            return False
        if self.sequence.finish_reason == "stop":
            return False  # the end token has no text of its own
        text, stopped = self._detokenizer.push(token_id)
        self._text += text
        if stopped:
            self._detokenizer = None  # nothing after a stop string is text
        return stopped

    def mute(self) -> None:
        """Gives up turning tokens into text."""
        self._detokenizer = None

    def output(self, now: float, reason: FinishReason | None = None, error: str | None = None) -> Output:
        """Everything since the last output; with a reason, also the text that was held back."""
        if reason is not None and self._detokenizer is not None:
            self._text += self._detokenizer.flush().text
            self._detokenizer = None
        start = self.sequence.num_prompt_tokens + self._sent_tokens
        token_ids = tuple(self.sequence.token_ids[start:])
        self._sent_tokens += len(token_ids)
        text, self._text = self._text, ""
        logprobs, self._logprobs = tuple(self._logprobs), []
        return Output(
            request_id=self.request.request_id,
            text=text,
            token_ids=token_ids,
            finish_reason=reason,
            prompt_tokens=self.sequence.num_prompt_tokens,
            completion_tokens=self.sequence.num_completion_tokens,
            logprobs=logprobs,
            seconds_to_first_token=self.seconds_to_first_token,
            seconds=now - self.submitted_at,
            error=error,
        )
