"""Where other threads leave requests and cancels for the loop, and where the loop waits for them."""

from __future__ import annotations

import threading
from collections import deque
from typing import NamedTuple

from .errors import BadInput, Busy
from .live_request import LiveRequest


class News(NamedTuple):
    """What came since the loop last looked."""

    submitted: list[LiveRequest]  # in the order of their arrival
    cancelled: set[str]  # request ids


class Intake:
    """A bounded queue. Every method may be called from any thread; nothing here knows tokens or blocks."""

    def __init__(self, max_queue: int) -> None:
        self.max_queue = max_queue
        self._wake = threading.Condition()  # guards what follows
        self._submitted: deque[LiveRequest] = deque()
        self._cancelled: set[str] = set()
        self._request_ids: set[str] = set()  # of all requests that have not ended
        self._num_waiting = 0
        self._draining = False
        self._stopping = False

    @property
    def num_waiting(self) -> int:
        """Requests that wait: here, and (as the loop last said) in the scheduler."""
        with self._wake:
            return self._num_waiting

    @property
    def has_submitted(self) -> bool:
        """Whether a request waits here that the loop has not taken."""
        with self._wake:
            return bool(self._submitted)

    @property
    def stopping(self) -> bool:
        """Whether the loop should end."""
        with self._wake:
            return self._stopping

    def put(self, live: LiveRequest) -> None:
        """Queues a request. Raises Busy when the queue is full or closed, BadInput for an id in use."""
        request_id = live.request.request_id
        with self._wake:
            if self._draining or self._stopping:
                raise Busy(
                    "the engine is shutting down and takes no more requests; send it to another server"
                )
            if request_id in self._request_ids:
                raise BadInput(f"request id {request_id!r} is in use; give each request one of its own")
            if self._num_waiting >= self.max_queue:
                raise Busy(
                    f"{self._num_waiting} requests are waiting, which is all that the queue holds; "
                    "send the request again later"
                )
            self._num_waiting += 1
            self._request_ids.add(request_id)
            self._submitted.append(live)
            self._wake.notify_all()

    def cancel(self, request_id: str) -> None:
        """Leaves word to end a request; unknown ids are ignored."""
        with self._wake:
            if request_id in self._request_ids:
                self._cancelled.add(request_id)
                self._wake.notify_all()

    def take(self) -> News:
        """What came since the last call."""
        with self._wake:
            news = News(list(self._submitted), self._cancelled)
            self._submitted.clear()
            self._cancelled = set()
            return news

    def count_waiting(self, num_scheduled: int) -> None:
        """The loop says how many requests wait in its scheduler."""
        with self._wake:
            self._num_waiting = num_scheduled + len(self._submitted)

    def ended(self, request_id: str) -> None:
        """The loop says that a request has ended; its id may be used again."""
        with self._wake:
            self._request_ids.discard(request_id)
            self._cancelled.discard(request_id)  # or the next request of this id would end
            self._wake.notify_all()

    def wait_for_news(self, timeout: float | None) -> None:
        """Returns when something came, the loop should end, or `timeout` seconds have passed."""
        with self._wake:
            self._wake.wait_for(lambda: self._stopping or self._submitted or self._cancelled, timeout)

    def drain(self, timeout: float | None) -> bool:
        """Takes no more requests and waits until all have ended. False when `timeout` seconds were too few."""
        with self._wake:
            self._draining = True
            return self._wake.wait_for(lambda: not self._request_ids, timeout)

    def stop(self) -> None:
        """Takes no more requests, and wakes the loop to end."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
