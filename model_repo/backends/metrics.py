"""The engine's figures on Triton's metrics port, as `slipway_*`.

Published by a thread now and then: every update is a message to the server, too dear for every token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from ..runtime.metrics import Observation

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Gauges:
    """Values that go up and down, by name; written only when they changed."""

    def __init__(self, meanings: Mapping[str, str], labels: Mapping[str, str]) -> None:
        kind = pb_utils.MetricFamily.GAUGE
        self._families = [_family(name, meaning, kind) for name, meaning in meanings.items()]
        self._metrics = {
            name: family.Metric(labels=dict(labels))
            for name, family in zip(meanings, self._families, strict=True)
        }
        self._last: dict[str, float] = {}

    def publish(self, values: Mapping[str, float]) -> None:
        """Sets the gauges named in `values`; others in it are left to other kinds."""
        for name, metric in self._metrics.items():
            if self._last.get(name) != values[name]:
                metric.set(values[name])
                self._last[name] = values[name]


class Counters:
    """Totals that only grow, by name."""

    def __init__(self, meanings: Mapping[str, str], labels: Mapping[str, str]) -> None:
        kind = pb_utils.MetricFamily.COUNTER
        self._families = [_family(name, meaning, kind) for name, meaning in meanings.items()]
        self._metrics = {
            name: family.Metric(labels=dict(labels))
            for name, family in zip(meanings, self._families, strict=True)
        }
        self._last = dict.fromkeys(meanings, 0.0)

    def publish(self, totals: Mapping[str, float]) -> None:
        """Adds what came since the last call; a total that is missing is still 0."""
        for name, metric in self._metrics.items():
            total = totals.get(name, 0.0)
            if total > self._last[name]:
                metric.increment(total - self._last[name])
                self._last[name] = total


class Histograms:
    """Distributions, by name; `buckets` are upper bounds."""

    def __init__(
        self, meanings: Mapping[str, tuple[str, Sequence[float]]], labels: Mapping[str, str]
    ) -> None:
        self._families = {
            name: _family(name, meaning, pb_utils.MetricFamily.HISTOGRAM)
            for name, (meaning, _) in meanings.items()
        }
        self._metrics = {
            name: self._families[name].Metric(labels=dict(labels), buckets=list(buckets))
            for name, (_, buckets) in meanings.items()
        }

    def publish(self, observations: Sequence[Observation]) -> None:
        """Adds observations."""
        for name, value in observations:
            if name in self._metrics:
                self._metrics[name].observe(value)


def _family(name: str, meaning: str, kind: Any) -> Any:
    return pb_utils.MetricFamily(name=f"slipway_{name}", description=meaning, kind=kind)
