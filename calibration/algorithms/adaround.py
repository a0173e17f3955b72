"""AdaRound: whether each weight is rounded up or down is learned from the layer's inputs.

Nagel et al. 2020, arXiv:2004.10568. With w_q = s (floor(w / s) + h(v)) and h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1),
minimizes by Adam over v

    (w - w_q) H (w - w_q)^T  +  sum of lambda_j (1 - |2 h(v_j) - 1|^2)

H the mean of x x^T. The second term drives h to 0 or 1. The paper keeps lambda and lets the exponent fall; here the
exponent is 2 and lambda_j = c s_j^2 H_jj with c growing from LAMBDA_FIRST to LAMBDA_LAST: the weights of channels with
large inputs are then decided no sooner than the others, which leaves a third of the error where inputs have
outliers. A row of which round to nearest makes the smaller error keeps it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.schemes import Quantized, Scheme
from model_repo.runtime.errors import BadInput

from .grid import Grid, grid_of

Array = npt.NDArray[np.floating[Any]]

ITERATIONS = 500
RATE = 0.02
LAMBDA_FIRST, LAMBDA_LAST = 1e-3, 10.0
"""Multiples of each weight's own curvature; above 1/4 there is no minimum between 0 and 1."""
_LOW, _HIGH = -0.1, 1.1
_DECAYS = (0.9, 0.999)


def adaround(
    weight: Array, hessian: Array, scheme: Scheme, *, grid: Grid | None = None, iterations: int = ITERATIONS
) -> Quantized:
    """`weight` [out, in] quantized for inputs of mean second moment `hessian` [in, in]. Whole-number formats only.

    Raises BadInput for other formats: their values have no common step to round up by.
    """
    grid = grid or grid_of(weight, scheme)
    if scheme.format not in ("int8", "uint8", "int4"):
        raise BadInput(
            f"AdaRound learns to round up or down by one step, which {scheme.format} does not have; choose int4, "
            "int8 or uint8, or another algorithm"
        )
    weight = weight.astype(np.float32)
    exact = weight / grid.steps
    floor = np.floor(exact)
    plain = grid.values(weight)
    plain_rows = _row_errors(plain - weight, hessian)
    if not plain_rows.any():
        return grid.quantized(weight)
    choice = _learned(weight, floor, exact - floor, grid.steps, hessian, iterations)
    learned = grid.values((floor + choice) * grid.steps)
    keep = _row_errors(learned - weight, hessian) < plain_rows
    return grid.quantized(np.where(keep[:, None], learned, plain))


def _learned(
    weight: Array, floor: Array, fraction: Array, steps: Array, hessian: Array, iterations: int
) -> Array:
    """0 or 1 for each weight."""
    moments = (hessian / np.diag(hessian).mean()).astype(np.float32)
    curvature = np.diag(moments) * steps * steps
    share = np.clip((fraction - _LOW) / (_HIGH - _LOW), 0.01, 0.99)
    variable = np.log(share / (1 - share)).astype(np.float32)
    momentum, square = np.zeros_like(variable), np.zeros_like(variable)
    for turn in range(iterations):
        sigmoid = 1 / (1 + np.exp(-variable))
        stretched = (_HIGH - _LOW) * sigmoid + _LOW
        height = np.clip(stretched, 0, 1)
        slope = np.where(height == stretched, (_HIGH - _LOW) * sigmoid * (1 - sigmoid), 0)
        strength = LAMBDA_FIRST * (LAMBDA_LAST / LAMBDA_FIRST) ** (turn / iterations)
        gradient = 2 * (((floor + height) * steps - weight) @ moments) * steps
        gradient -= 4 * strength * curvature * (2 * height - 1)
        gradient *= slope
        momentum += (1 - _DECAYS[0]) * (gradient - momentum)
        square += (1 - _DECAYS[1]) * (gradient * gradient - square)
        rate = RATE * np.sqrt(1 - _DECAYS[1] ** (turn + 1)) / (1 - _DECAYS[0] ** (turn + 1))
        variable -= (rate * momentum / (np.sqrt(square) + np.finfo(np.float32).tiny)).astype(np.float32)
    upwards: Array = (variable > 0).astype(np.float32)
    return upwards


def _row_errors(difference: Array, hessian: Array) -> npt.NDArray[np.float64]:
    wide = difference.astype(np.float64)
    rows: npt.NDArray[np.float64] = np.einsum("oi,oi->o", wide @ hessian, wide)
    return rows
