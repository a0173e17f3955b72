"""The requests that an engine has taken and not ended: who gets text, who ends, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from .intake import Intake
from .live_request import LiveRequest
from .logs import log_event
from .metrics import Metrics
from .output import FinishReason, Output
from .scheduler import Scheduler
from .sequence import Sequence


class LiveRequests:
    """Requests by their sequences, from the intake to their last output; all on the loop's thread.

    What the scheduler holds, running or waiting, is in here, and nothing else, between two calls. `clock` gives
    seconds.
    """

    def __init__(
        self, scheduler: Scheduler, intake: Intake, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._scheduler = scheduler
        self._intake = intake
        self._metrics = metrics
        self._clock = clock
        self._live: dict[Sequence, LiveRequest] = {}

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._live)

    def __getitem__(self, sequence: Sequence) -> LiveRequest:
        return self._live[sequence]

    def take_news(self, now: float) -> None:
        """Moves what other threads left into the scheduler; ends what was cancelled or is late."""
        submitted, cancelled = self._intake.take()
        for live in submitted:
            self._live[live.sequence] = live
            self._scheduler.add(live.sequence)
        if cancelled:
            for live in [live for live in self._live.values() if live.request.request_id in cancelled]:
                self.end(live, "cancelled")
        for sequence in self._scheduler.expired(now):
            self.end(self._live[sequence], "timeout")

    def deliver(self, live: LiveRequest) -> None:
        """Sends a request's new text; ends it when its last token or a stop string came, or no text can be made."""
        try:
            self._advance(live)
        except Exception as error:  # no text for these tokens: their own request ends, the others go on
            live.mute()
            self.end(live, "error", f"the tokenizer failed on this request's tokens: {error}")

    def end(self, live: LiveRequest, reason: FinishReason, error: str | None = None) -> None:
        """Takes a request out and sends its last output."""
        self._scheduler.finish(live.sequence, reason)
        del self._live[live.sequence]
        now = self._clock()
        seconds = now - live.submitted_at
        generated = live.sequence.num_completion_tokens
        self._metrics.count(f"requests_{reason}")
        self._metrics.count("prompt_tokens", live.sequence.num_prompt_tokens)
        self._metrics.count("generated_tokens", generated)
        if generated > 1 and live.seconds_to_first_token is not None:
            per_token = (seconds - live.seconds_to_first_token) / (generated - 1)
            self._metrics.observe("time_per_output_token_seconds", per_token)
        log_event(
            logging.INFO,
            "request ended",
            request_id=live.request.request_id,
            finish_reason=reason,
            prompt_tokens=live.sequence.num_prompt_tokens,
            completion_tokens=generated,
            seconds=round(seconds, 4),
        )
        self._send(live, live.output(now, reason, error))
        self._intake.ended(live.request.request_id)

    def end_all(self, reason: FinishReason) -> None:
        """Ends every request."""
        for live in list(self._live.values()):
            self.end(live, reason)

    def break_down(self, error: str) -> None:
        """Ends every request with `error` and without more text, those still in the intake as well."""
        self._live.update((live.sequence, live) for live in self._intake.take().submitted)
        for live in list(self._live.values()):
            live.mute()
            self.end(live, "error", error)

    def _advance(self, live: LiveRequest) -> None:
        now = self._clock()
        if live.seconds_to_first_token is None:
            live.seconds_to_first_token = now - live.submitted_at
            self._metrics.observe("time_to_first_token_seconds", live.seconds_to_first_token)
        stopped = live.advance()
        if stopped and live.sequence.finish_reason in (None, "length"):
            self._scheduler.finish(live.sequence, "stop")
            live.sequence.finish_reason = "stop"
        if live.sequence.finish_reason is not None:
            self.end(live, live.sequence.finish_reason)
            return
        self._send(live, live.output(now))

    def _send(self, live: LiveRequest, output: Output) -> None:
        """A sink that fails ends its own request and nobody else's."""
        try:
            live.sink(output)
        except Exception as error:
            log_event(logging.ERROR, "sink failed", request_id=live.request.request_id, error=repr(error))
            if output.finish_reason is None:
                self._intake.cancel(live.request.request_id)
