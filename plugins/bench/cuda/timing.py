"""Times of calls on a device: medians over replays of a CUDA graph, so that the host's own time stays out."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], object]

CACHE_FACTOR = 4
"""Buffers are rotated over more than this many times the L2 cache."""

LEAST_REPLAY_US = 300.0
"""Short calls are put into a graph several times, so that the start of a replay does not count."""


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: the median, and half the distance of the quartiles over it. replayed: in a graph."""

    microseconds: float
    spread: float
    replayed: bool


class Clock:
    """Measures on one device. A CPU (for tests) is measured by the host's clock, call by call."""

    def __init__(self, device: torch.device, seconds: float = 0.25) -> None:
        self.device = device
        self.seconds = seconds
        self.l2_bytes = (
            int(torch.cuda.get_device_properties(device).L2_cache_size) if device.type == "cuda" else 0
        )

    def sets(self, bytes_of_one: int) -> int:
        """How many sets of buffers a case needs, so that none of a call's data is still in the cache."""
        return (
            max(1, math.ceil(CACHE_FACTOR * self.l2_bytes / max(1, bytes_of_one)) + 1) if self.l2_bytes else 1
        )

    def measure(self, calls: Sequence[Call]) -> Timing:
        """The time of one call; `calls` are the same on different buffers, and run in turn."""
        if self.device.type != "cuda":
            return self._by_host(calls)
        for _ in range(2):
            for call in calls:
                call()
        torch.cuda.synchronize(self.device)
        rough = self._replays(_eager(calls), 3)
        rounds = max(1, math.ceil(LEAST_REPLAY_US / max(1.0, min(rough))))
        try:
            replay, replayed = self._captured(calls, rounds), True
        except RuntimeError:
            # Not everything can be captured (some baselines wait for the device).
            torch.cuda.synchronize(self.device)
            replay, replayed = _eager(calls), False
            rounds = 1
        first = self._replays(replay, 3)
        count = int(min(200, max(10, self.seconds * 1e6 / max(first))))
        samples = sorted(time / (rounds * len(calls)) for time in self._replays(replay, count))
        return _timing(samples, replayed)

    def _captured(self, calls: Sequence[Call], rounds: int) -> Call:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(rounds):
                for call in calls:
                    call()
        return graph.replay

    def _replays(self, call: Call, count: int) -> list[float]:
        """Microseconds of each of `count` calls, by events on the device."""
        event: Any = torch.cuda.Event
        events = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(count)]
        for begin, end in events:
            begin.record()
            call()
            end.record()
        torch.cuda.synchronize(self.device)
        return [begin.elapsed_time(end) * 1e3 for begin, end in events]

    def _by_host(self, calls: Sequence[Call]) -> Timing:
        samples = []
        for _ in range(3):
            for call in calls:
                begun = time.perf_counter()
                call()
                samples.append((time.perf_counter() - begun) * 1e6)
        return _timing(sorted(samples), replayed=False)


def _eager(calls: Sequence[Call]) -> Call:
    def run() -> None:
        for call in calls:
            call()

    return run


def _timing(samples: Sequence[float], replayed: bool) -> Timing:
    median = statistics.median(samples)
    low, _, high = statistics.quantiles(samples, n=4) if len(samples) > 1 else (median, median, median)
    return Timing(median, (high - low) / 2 / median if median else 0.0, replayed)


class Ceilings:
    """What the device can do at most, measured in the same run: copies of a given size, and bf16 products."""

    def __init__(self, clock: Clock, matmul_size: int = 8192) -> None:
        self._clock = clock
        self._matmul_size = matmul_size
        self._copies: dict[int, float] = {}
        self._matmul: float | None = None

    def copy_bandwidth(self, moved_bytes: int) -> float:
        """Bytes a second, read and written both counted, of a copy that moves `moved_bytes` in all."""
        size = max(2, 1 << round(math.log2(max(2, moved_bytes))))
        if size not in self._copies:
            device = self._clock.device
            sources = [
                torch.randint(0, 255, (size // 2,), dtype=torch.uint8, device=device)
                for _ in range(self._clock.sets(size))
            ]
            timing = self._clock.measure([_copy(source, torch.empty_like(source)) for source in sources])
            self._copies[size] = size / timing.microseconds * 1e6
        return self._copies[size]

    def matmul_rate(self) -> float:
        """Operations a second of a large bf16 product on random numbers (zeros run faster)."""
        if self._matmul is None:
            n = self._matmul_size
            a, b = (torch.randn(n, n, device=self._clock.device).bfloat16() for _ in range(2))
            result = torch.empty_like(a)
            timing = self._clock.measure([lambda: torch.matmul(a, b, out=result)])
            self._matmul = 2.0 * n**3 / timing.microseconds * 1e6
        return self._matmul

    def measured(self) -> dict[str, float]:
        """All that was asked for, by name: bytes/s of copies by size, operations/s of products."""
        found = {
            f"copy of {size / 1e6:.4g} MB, GB/s": rate / 1e9 for size, rate in sorted(self._copies.items())
        }
        if self._matmul is not None:
            found["bf16 matmul, TFLOP/s"] = self._matmul / 1e12
        return found


def _copy(source: torch.Tensor, target: torch.Tensor) -> Call:
    return lambda: target.copy_(source)
