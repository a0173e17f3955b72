"""What the algorithms know of a linear layer's inputs: sums over all samples, so memory does not grow with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from model_repo.runtime.errors import BadInput

Array = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]


@dataclass
class Statistics:
    """Sums over the rows that a layer of `width` inputs has been given.

    `second_moments` is X^T X, float64 [width, width] (half the Hessian of the layer's squared output error);
    the others are float64 [width], a value for each input channel.
    """

    width: int
    rows: int = 0
    second_moments: Float64 = field(init=False)
    sums: Float64 = field(init=False)
    absolute_sums: Float64 = field(init=False)
    absolute_max: Float64 = field(init=False)

    def __post_init__(self) -> None:
        self.second_moments = np.zeros((self.width, self.width))
        self.sums, self.absolute_sums, self.absolute_max = (np.zeros(self.width) for _ in range(3))

    def add(self, inputs: Array, name: str = "a layer") -> None:
        """Adds the rows of `inputs` [..., width]. Raises BadInput when one of them is not finite."""
        rows = inputs.reshape(-1, self.width).astype(np.float32, copy=False)
        if not np.isfinite(rows).all():
            raise BadInput(
                f"the inputs of {name} hold NaN or infinity on the calibration data; check the float model with "
                "`slipway check`, and give other data"
            )
        self.rows += len(rows)
        self.second_moments += rows.T @ rows  # float32 within a sample, float64 over samples
        self.sums += rows.sum(axis=0, dtype=np.float64)
        self.absolute_sums += np.abs(rows).sum(axis=0, dtype=np.float64)
        np.maximum(self.absolute_max, np.abs(rows).max(axis=0, initial=0.0), out=self.absolute_max)

    @property
    def hessian(self) -> Float64:
        """Mean of x x^T over the rows, [width, width]."""
        return self.second_moments / max(self.rows, 1)

    @property
    def mean(self) -> Float64:
        """Mean of each channel, [width]."""
        return self.sums / max(self.rows, 1)

    @property
    def absolute_mean(self) -> Float64:
        """Mean magnitude of each channel, [width]."""
        return self.absolute_sums / max(self.rows, 1)


def statistics_of(inputs: Array) -> Statistics:
    """Statistics of one array [..., width]."""
    statistics = Statistics(inputs.shape[-1])
    statistics.add(inputs)
    return statistics


def output_error(difference: Array, hessian: Array) -> float:
    """Mean over the rows of the squared error of a layer's outputs: the trace of D H D^T.

    `difference`: quantized minus float weight, [out, in]; `hessian`: mean of x x^T, [in, in].
    """
    wide = difference.astype(np.float64, copy=False)
    return float(np.einsum("oi,oi->", wide @ hessian, wide))
