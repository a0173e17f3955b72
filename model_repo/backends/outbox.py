"""Hands the engine loop's outputs to clients on a thread of its own, so that no client slows the loop.

The loop calls `Stream.put` and goes on. A stream that still waits for its turn collects its further tokens
and sends them as one response: when the way out is slow, they get fewer and larger; the loop never waits.

Responses cost processor time that the engine would use: about half a millisecond each, from here to the client. So
all streams together send a bounded number a second. Few streams never meet the bound; with many on few cores each
sends the tokens of some steps together. First and last tokens never wait.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ..runtime.output import FinishReason, Output, TokenLogprob

RESPONSES_PER_SECOND_AND_CORE = 150
"""At half a millisecond a response: under a tenth of the machine."""


def responses_per_second() -> int:
    """The bound on this machine: a GPU server with 64 cores never meets it."""
    return RESPONSES_PER_SECOND_AND_CORE * len(os.sched_getaffinity(0))


@dataclass
class Pending:
    """What the next response of a stream carries: everything since the last one. `ordinal` counts from 1."""

    ordinal: int
    texts: list[str] = field(default_factory=list)
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None

    def add(self, output: Output) -> None:
        """Appends one output of the loop."""
        if output.text:
            self.texts.append(output.text)
        self.num_tokens += len(output.token_ids)
        self.num_prompt_tokens = output.prompt_tokens
        self.logprobs.extend(output.logprobs)
        self.finish_reason = output.finish_reason
        self.error = output.error


class Stream:
    """One client's way out. `whole` holds everything back until the request is finished.

    `send` writes one response; it is called on the outbox's thread, one call at a time.
    """

    def __init__(self, outbox: Outbox, send: Callable[[Pending], None], whole: bool) -> None:
        self._outbox = outbox
        self.send = send
        self.whole = whole
        self.pending = Pending(ordinal=1)  # guarded by the outbox's lock, as is what follows
        self.queued = False
        self.queued_at = 0.0
        outbox.opened()

    def put(self, output: Output) -> None:
        """Takes one output of the loop; returns at once."""
        self._outbox.put(self, output)


class Outbox:
    """The thread that sends. `close` sends what is left and ends it.

    `on_error` is told of responses that could not be sent; the other streams go on. `rate` bounds the responses a
    second of all streams together. `clock` gives seconds.
    """

    def __init__(
        self,
        on_error: Callable[[Exception], None],
        rate: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_error = on_error
        self._seconds_a_response = 1.0 / rate
        self._clock = clock
        self._num_open = 0
        self._condition = threading.Condition()
        self._ready: deque[Stream] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="slipway-outbox", daemon=True)
        self._thread.start()

    def put(self, stream: Stream, output: Output) -> None:
        """Adds `output` to the stream's next response; queues the stream when there is something to send."""
        with self._condition:
            stream.pending.add(output)
            finished = output.finish_reason is not None
            if finished:
                self._num_open -= 1
            if stream.queued or not (finished or self._due(stream)):
                return
            stream.queued = True
            stream.queued_at = self._clock()
            self._ready.append(stream)
            self._condition.notify()

    def opened(self) -> None:
        """A stream more shares the bound, until its last output."""
        with self._condition:
            self._num_open += 1

    def abandoned(self) -> None:
        """A stream that will never have an output shares it no more."""
        with self._condition:
            self._num_open -= 1

    def close(self) -> None:
        """Waits until everything queued is sent."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join()

    def _due(self, stream: Stream) -> bool:
        if stream.whole or not stream.pending.texts:
            return False
        waited = self._clock() - stream.queued_at
        return stream.pending.ordinal == 1 or waited >= self._num_open * self._seconds_a_response

    def _run(self) -> None:
        while True:
            with self._condition:
                while not self._ready:
                    if self._closing:
                        return
                    self._condition.wait()
                stream = self._ready.popleft()
                pending, stream.pending = stream.pending, Pending(stream.pending.ordinal + 1)
                stream.queued = False
            try:
                stream.send(pending)
            except Exception as error:
                self._on_error(error)
