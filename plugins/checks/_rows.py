"""What the cases of operators over rows share: tolerances, scales, and codes that rounding cannot move.

Codes are compared in bits. A kernel's float32 result may differ from the reference's in its last bits (sums in another
order, another exp), and then a value that lies between two codes goes to either. So the inputs are drawn such that
no result lies there: `decided` says which ones do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plugins.reference.rows import quantize, row_scales

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SCALE_TOLERANCE = 2e-6
"""Of a row's own scale, a float32."""

UNCERTAINTY = 2e-6
"""How far a kernel's float32 result may be from the reference's, relative to it."""

UNCERTAINTY_OF_SUMS = 2e-7
"""The same relative to the largest result of its row, added: near zero, what a row's mean is decides."""


def decided(results: Tensor, scale: Tensor, dtype: torch.dtype, uncertainty: float = UNCERTAINTY) -> Tensor:
    """Whether each result is so far from the middle between two codes that its code is certain, bool [rows, columns].

    scale: [1] or [rows].
    """
    magnitude = results.double().abs()
    moved = magnitude * uncertainty + magnitude.amax(dim=1, keepdim=True) * UNCERTAINTY_OF_SUMS
    codes = [quantize(results.double() + sign * moved, scale, dtype).view(torch.int8) for sign in (-1.0, 1.0)]
    return (codes[0] == codes[1]) | (results == 0)  # a zero has no neighbours: its code, 0 or -0, is certain


def scale_of(results: Tensor, dtype: torch.dtype, own: bool) -> Tensor:
    """[rows] of the results' own scales, or a [1] at which a few of them saturate."""
    return row_scales(results, dtype) if own else row_scales(results.reshape(1, -1), dtype) * 0.6


def dtype_name(dtype: torch.dtype) -> str:
    """float16 instead of torch.float16."""
    return str(dtype).removeprefix("torch.")
