"""The loop's own figures: plain numbers, published by whoever has a place for them."""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_FRESH = 100_000
"""Observations kept until somebody takes them; without a taker the oldest go."""


class Observation(NamedTuple):
    """One value of a histogram, seconds or a count, by the histogram's name."""

    name: str
    value: float


@dataclass
class Metrics:
    """Counters grow for ever; observations are handed over once, by `take_observations`. Thread-safe.

    Counters: requests_<finish reason>, prompt_tokens, generated_tokens, preemptions, steps.
    Observations: time_to_first_token_seconds, time_per_output_token_seconds, batch_size.
    """

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _counters: Counter[str] = field(default_factory=Counter)
    _fresh: deque[Observation] = field(default_factory=lambda: deque(maxlen=MAX_FRESH))

    def count(self, name: str, amount: int = 1) -> None:
        """Adds to a counter."""
        with self._lock:
            self._counters[name] += amount

    def observe(self, name: str, value: float) -> None:
        """Adds a value to a histogram."""
        with self._lock:
            self._fresh.append(Observation(name, value))

    def counters(self) -> dict[str, int]:
        """All counters so far."""
        with self._lock:
            return dict(self._counters)

    def take_observations(self) -> list[Observation]:
        """Observations since the last call."""
        with self._lock:
            taken = list(self._fresh)
            self._fresh.clear()
            return taken
