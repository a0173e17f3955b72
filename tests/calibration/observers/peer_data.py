"""Activations that our observers and other projects' calibrators are shown: the demo's kinds, from fixed seeds."""

from __future__ import annotations

import numpy as np


def _batches(kind: str, count: int = 4, size: int = 8192) -> list[np.ndarray]:
    draw = np.random.default_rng(len(kind))
    every = []
    for _ in range(count):
        x = draw.standard_normal(size).astype(np.float32)
        if kind == "outliers":  # as what a norm gives: a few channels far out
            x[:: size // 16] *= 12
        elif kind == "gated":  # as a gated activation: most near zero, long tails
            x = x * np.abs(x) * draw.standard_normal(size).astype(np.float32)
        elif kind == "relu":
            x = np.maximum(x, 0)
        elif kind == "growing":  # the range of each batch is larger than the one's before
            x = x * np.float32(1 + len(every))
        every.append(x)
    return every


BATCHES = {kind: _batches(kind) for kind in ("normal", "outliers", "gated", "relu", "growing")}
