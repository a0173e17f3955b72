"""GPTQ: round column by column, and let the columns still to come make up for each error.

Frantar et al. 2022, arXiv:2210.17323. For each row w of the weight the error of the layer's output is
(w - q) H (w - q)^T with H the mean of x x^T. Once column i is rounded to q_i, the columns after it that make that
error least are

    w_j  <-  w_j - (w_i - q_i) / U_ii * U_ij,      j > i,      H^-1 = U^T U (U upper triangular)

Columns go in order of falling H_ii (act-order); H gets `damping` times its mean diagonal; updates beyond a block of
columns are applied once a block. A channel that never was other than zero keeps its rounded value and moves nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from calibration.schemes import Quantized, Scheme
from model_repo.runtime.errors import BadInput

from .grid import Grid, grid_of

Array = npt.NDArray[np.floating[Any]]

BLOCK = 128
"""Columns between two updates of the rest."""
DAMPING = 0.01


def gptq(
    weight: Array,
    hessian: Array,
    scheme: Scheme,
    *,
    grid: Grid | None = None,
    act_order: bool = True,
    damping: float = DAMPING,
    block: int = BLOCK,
) -> Quantized:
    """`weight` [out, in] quantized for inputs of mean second moment `hessian` [in, in].

    `grid`: scales to use; by default those of round to nearest. They are decided before any column moves, so that
    blocks of neighbours keep their scale in whatever order columns go. Raises BadInput when `hessian` is not finite
    or of another shape.
    """
    columns = weight.shape[1]
    if hessian.shape != (columns, columns) or not np.isfinite(hessian).all():
        raise BadInput(
            f"the second moments of the inputs are {list(hessian.shape)} or not finite; a weight of "
            f"{list(weight.shape)} takes finite [{columns}, {columns}]"
        )
    grid = grid or grid_of(weight, scheme)
    order = np.argsort(-np.diag(hessian), kind="stable") if act_order else np.arange(columns)
    upper = inverse_factor(hessian[np.ix_(order, order)], damping)
    rest = weight[:, order].astype(np.float64)
    codes = np.empty(weight.shape, np.float32)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = np.empty((len(rest), stop - start))
        for column in range(start, stop):
            place = int(order[column])
            chosen = grid.codes(rest[:, column], place)
            codes[:, place] = chosen
            value = (chosen - grid.zeros[:, place]) * grid.steps[:, place]
            error = (rest[:, column] - value) / upper[column, column]
            rest[:, column + 1 : stop] -= np.outer(error, upper[column, column + 1 : stop])
            errors[:, column - start] = error
        rest[:, stop:] -= errors @ upper[start:stop, stop:]
    return grid.with_codes(codes)


def inverse_factor(hessian: Array, damping: float = DAMPING) -> npt.NDArray[np.float64]:
    """Upper triangular U with U^T U the inverse of the damped `hessian`, float64 [in, in].

    With J the reversal of order, J H J = L L^T gives H = A A^T for A = J L J, which is upper triangular, so U is
    the inverse of A. Where samples are fewer than channels, damping grows until H has a factor.
    """
    wide = hessian.astype(np.float64, copy=True)
    dead = np.diag(wide) <= 0
    wide[dead, dead] = 1.0
    strength = damping * float(np.diag(wide).mean())
    while True:
        damped = wide + strength * np.eye(len(wide))
        try:
            lower = np.linalg.cholesky(damped[::-1, ::-1])
        except np.linalg.LinAlgError:
            strength = max(10 * strength, 1e-12 * float(np.diag(wide).mean()))
            continue
        return np.linalg.inv(lower[::-1, ::-1])
