"""What an observer is."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from calibration.schemes import Scheme, quantize
from model_repo.runtime.errors import BadInput

Array = npt.NDArray[Any]


class Range(NamedTuple):
    """The numbers that codes should cover: float32 of shape (), or [slices] where each has its own."""

    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]

    @property
    def amax(self) -> npt.NDArray[np.float32]:
        """The largest absolute value covered: what a symmetric scale is made of."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


class Observer(Protocol):
    """Sees a tensor batch by batch."""

    def observe(self, array: Array) -> None:
        """Takes one batch in, float of any shape. Raises BadInput when it holds NaN or infinity."""

    def range(self) -> Range:
        """What was found so far. Raises BadInput when nothing was observed."""


def scale_of_range(
    span: Range, scheme: Scheme
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32] | None]:
    """Scales and zero points (None without) of the span's shape, for numbers stored in `scheme`'s format.

    Those that `quantize` gives an array which holds just the ends.
    """
    ends = np.stack((span.low, span.high), axis=-1)
    granularity: Literal["channel", "tensor"] = "channel" if ends.ndim == 2 else "tensor"
    made = quantize(ends, Scheme(scheme.format, granularity, symmetric=scheme.symmetric), axis=0)
    return made.scales, made.zero_points


def finite_extremes(array: Array) -> tuple[np.float32, np.float32]:
    """Smallest and largest element of an array that is not empty. Raises BadInput when one is not finite."""
    # NaN comes through both; two passes that find infinity on the way.
    low, high = np.float32(array.min()), np.float32(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int((~np.isfinite(array)).sum())
        raise BadInput(f"{count} of {array.size} activations are NaN or infinite")
    return low, high


def clipped(amax: float, low: np.float32, high: np.float32) -> Range:
    """-amax to amax, but no further than there were numbers. A side without numbers stays as it was."""
    limit = np.float32(amax)
    return Range(np.asarray(np.maximum(low, -limit)), np.asarray(np.minimum(high, limit)))


def nothing_observed() -> BadInput:
    """The error of asking too early."""
    return BadInput("no activations were observed; give calibration data that reaches the tensor")
