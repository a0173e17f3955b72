"""The engine's figures on Triton's metrics port, as `slipway_*`.

Published by a thread now and then: every update is a message to the server, too dear for every token.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import triton_python_backend_utils as pb_utils

from ..runtime.metrics import Observation

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Total(NamedTuple):
    """A counter of the runtime on the metrics port: family, meaning, further labels."""

    family: str
    meaning: str
    labels: Mapping[str, str] = {}


class Gauges:
    """Values that go up and down: runtime name -> meaning; written only when they changed."""

    def __init__(self, meanings: Mapping[str, str], labels: Mapping[str, str]) -> None:
        self._families = _Families(pb_utils.MetricFamily.GAUGE)
        self._metrics = {
            name: self._families.get(name, meaning).Metric(labels=dict(labels))
            for name, meaning in meanings.items()
        }
        self._last: dict[str, float] = {}

    def publish(self, values: Mapping[str, float]) -> None:
        """Sets the gauges; other names in `values` are left to other kinds."""
        for name, metric in self._metrics.items():
            if self._last.get(name) != values[name]:
                metric.set(values[name])
                self._last[name] = values[name]


class InFlight:
    """`slipway_in_flight`, exact at any moment: whoever stops the server waits for 0. Thread-safe."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._families = _Families(pb_utils.MetricFamily.GAUGE)
        family = self._families.get("in_flight", "Requests that have not been answered in full")
        self._metric = family.Metric(labels=dict(labels))
        self._lock = threading.Lock()  # two threads at once on one metric lose updates
        self._count = 0

    def add(self, change: int) -> None:
        """Counts requests in (1) or out (-1)."""
        with self._lock:
            self._count += change
            self._metric.set(self._count)


class Counters:
    """Totals that only grow, by runtime name. What was there `before` (a warm-up) does not count."""

    def __init__(
        self, totals: Mapping[str, Total], labels: Mapping[str, str], before: Mapping[str, float]
    ) -> None:
        self._families = _Families(pb_utils.MetricFamily.COUNTER)
        self._metrics = {
            name: self._families.get(f"{total.family}_total", total.meaning).Metric(
                labels={**labels, **total.labels}
            )
            for name, total in totals.items()
        }
        self._last = {name: before.get(name, 0.0) for name in totals}

    def publish(self, totals: Mapping[str, float]) -> None:
        """Adds what came since the last call; a total that is missing is still 0."""
        for name, metric in self._metrics.items():
            total = totals.get(name, 0.0)
            if total > self._last[name]:
                metric.increment(total - self._last[name])
                self._last[name] = total


class Histograms:
    """Distributions: runtime name -> meaning and upper bounds of the buckets."""

    def __init__(
        self, meanings: Mapping[str, tuple[str, Sequence[float]]], labels: Mapping[str, str]
    ) -> None:
        self._families = _Families(pb_utils.MetricFamily.HISTOGRAM)
        self._metrics = {
            name: self._families.get(name, meaning).Metric(labels=dict(labels), buckets=list(buckets))
            for name, (meaning, buckets) in meanings.items()
        }

    def publish(self, observations: Sequence[Observation]) -> None:
        """Adds observations; other names are left out."""
        for name, value in observations:
            if name in self._metrics:
                self._metrics[name].observe(value)


class _Families:
    """Metric families of one kind; they live as long as this object."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._families: dict[str, Any] = {}

    def get(self, name: str, meaning: str) -> Any:
        if name not in self._families:
            self._families[name] = pb_utils.MetricFamily(
                name=f"slipway_{name}", description=meaning, kind=self._kind
            )
        return self._families[name]
