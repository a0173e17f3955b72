"""Finds streams whose client is gone, although an ensemble tells its running step nothing.

When the client of an ensemble disconnects, tritonserver cancels the ensemble's *next* step only: what the
engine loop sends on is dropped before postprocess sees it, and `is_cancelled()` of the loop's own request
stays false. So the loop asks postprocess which pieces came through. The question goes through the same queue as
the pieces, so when its answer is there, a piece that was sent before and did not come through was dropped: its
client is gone. No clock decides; a slow server loses nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

Ordinals = Mapping[int, int]
"""Stream -> ordinal of its last piece, from 1."""


class Liveness:
    """Pieces sent and pieces seen, per stream. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: dict[int, int] = {}
        self._seen: dict[int, int] = {}

    def sent(self, stream: int, ordinal: int) -> None:
        """A piece that is not the last one is on its way; call it after the piece was handed over."""
        with self._lock:
            self._sent[stream] = ordinal

    def finished(self, stream: int) -> None:
        """The stream ends; nothing is asked about it any more."""
        with self._lock:
            self._sent.pop(stream, None)
            self._seen.pop(stream, None)

    def unconfirmed(self) -> Ordinals:
        """What was sent and not seen so far. Then ask postprocess, and call `gone` with the answer."""
        with self._lock:
            return {s: ordinal for s, ordinal in self._sent.items() if self._seen.get(s, 0) < ordinal}

    def gone(self, unconfirmed: Ordinals, seen: Ordinals) -> list[int]:
        """The streams of `unconfirmed` whose pieces were dropped, given what postprocess has `seen`."""
        with self._lock:
            for stream, ordinal in seen.items():
                if stream in self._sent:
                    self._seen[stream] = max(ordinal, self._seen.get(stream, 0))
            return [
                s for s, ordinal in unconfirmed.items() if s in self._sent and self._seen.get(s, 0) < ordinal
            ]
