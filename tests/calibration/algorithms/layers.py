"""Layers with correlated inputs and outlier channels, as those of language models are."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.algorithms.statistics import Statistics, statistics_of

Array = npt.NDArray[np.floating[Any]]


class Layer(NamedTuple):
    weight: npt.NDArray[np.float32]  # [out, in]
    inputs: npt.NDArray[np.float32]  # [rows, in]
    statistics: Statistics


def layer(out: int, width: int, rows: int = 400, seed: int = 0, outlier: float = 12.0) -> Layer:
    """Every input is a mixture of width / 4 hidden causes; each 16th channel is `outlier` times as large."""
    draw = np.random.default_rng(seed)
    causes = draw.standard_normal((rows, max(width // 4, 1)))
    mixed = causes @ draw.standard_normal((causes.shape[1], width)) / np.sqrt(causes.shape[1])
    inputs = mixed + 0.3 * draw.standard_normal((rows, width)) + 0.2 * draw.standard_normal(width)
    inputs[:, ::16] *= outlier
    inputs = inputs.astype(np.float32)
    weight = (draw.standard_normal((out, width)) / np.sqrt(width)).astype(np.float32)
    return Layer(weight, inputs, statistics_of(inputs))


def measured_error(rounded: Array, weight: Array, inputs: Array) -> float:
    """Mean squared norm of the output's error, from the outputs themselves in float64."""
    wide = inputs.astype(np.float64)
    return float(
        np.square(wide @ rounded.T.astype(np.float64) - wide @ weight.T.astype(np.float64)).sum(1).mean()
    )
