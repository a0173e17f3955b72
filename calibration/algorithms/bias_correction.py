"""Bias correction: rounding errors of a weight that shift an output's mean are taken off its bias.

Nagel et al. 2019, arXiv:1906.04721, section 4.2:   b  <-  b - (Q(W) - W) E[x]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]


def corrected_bias(weight: Array, rounded: Array, bias: Array, input_mean: Array) -> npt.NDArray[np.float32]:
    """The bias [out] with which the layer of weight `rounded` has the float layer's mean output.

    `weight` and `rounded` [out, in], `input_mean` [in]: the mean of each input channel. A convolution's weight
    is given as [out, in * kernel], its mean repeated over the kernel.
    """
    shift = (rounded.astype(np.float64) - weight) @ input_mean.astype(np.float64)
    corrected: npt.NDArray[np.float32] = (bias - shift).astype(np.float32)
    return corrected
