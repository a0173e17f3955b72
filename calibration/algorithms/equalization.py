"""Cross-layer equalization: two convolutions share the range of each channel between them.

Nagel et al. 2019, arXiv:1906.04721, section 4.1. With an activation between them that lets positive factors
through (ReLU, leaky ReLU, none), the channels i between two layers are divided by s_i in the first
and multiplied in the second:

    s_i = r1_i / sqrt(r1_i r2_i),   r1_i = max|W1[i]|,  r2_i = max|W2[:, i]|

after which both ranges are sqrt(r1_i r2_i).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]


class Pair(NamedTuple):
    """Two layers whose channels have been equalized."""

    first: npt.NDArray[np.float32]  # [channels, in / groups, ...kernel]
    bias: npt.NDArray[np.float32] | None  # [channels]
    second: npt.NDArray[np.float32]  # [out, channels / groups, ...kernel]
    factors: npt.NDArray[np.float32]  # [channels]; the values between the layers are divided by them


def equalize(first: Array, bias: Array | None, second: Array, groups: int = 1) -> Pair:
    """The same function with equal ranges. `groups`: of the second layer (1: dense; channels: depthwise).

    A channel that is zero in either layer keeps its factor of 1.
    """
    channels = len(first)
    ranges = np.abs(first.reshape(channels, -1)).max(axis=1).astype(np.float64)
    within = _by_input_channel(second, groups)
    after = np.abs(within).reshape(groups, within.shape[1], within.shape[2], -1).max(axis=(1, 3)).reshape(-1)
    alive = (ranges > 0) & (after > 0)
    factors = np.ones(channels)
    factors[alive] = np.sqrt(ranges[alive] / after[alive])
    new_second = within * factors.reshape(groups, 1, -1, *[1] * (second.ndim - 2))
    return Pair(
        (first / _column(factors, first.ndim)).astype(np.float32),
        None if bias is None else (bias / factors).astype(np.float32),
        new_second.reshape(second.shape).astype(np.float32),
        factors.astype(np.float32),
    )


def _by_input_channel(weight: Array, groups: int) -> Array:
    """[groups, out / groups, in / groups, ...kernel]."""
    return weight.reshape(groups, len(weight) // groups, *weight.shape[1:])


def _column(factors: Array, ndim: int) -> Array:
    return factors.reshape(-1, *[1] * (ndim - 1))
