"""What `QuantizedMatMul`, `QuantizedGather` and `FakeQuantizeTokens` mean, in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


LARGEST_CODE = 127
LARGEST_WIDE_CODE = 32639
"""Of rows that are multiplied with 8-bit weights in blocks."""


def token_scales(rows: npt.ArrayLike, scale: float | None = None, largest: int = LARGEST_CODE) -> Array:
    """[rows, 1]: each row's largest absolute value / `largest`, or `scale` for all; 1 where there are only zeros."""
    numbers = np.asarray(rows, np.float32)
    if scale is not None:
        return np.full((numbers.shape[0], 1), scale)
    found = np.abs(numbers).max(axis=1, keepdims=True, initial=0) / np.float32(largest)
    return np.where(found < np.finfo(np.float32).tiny, 1.0, found.astype(np.float64))


def fake_quantize_tokens(
    rows: npt.ArrayLike, scale: float | None = None, block: int | None = None, largest: int = LARGEST_CODE
) -> Array:
    """[rows, size]: codes are round(x / scale), halves to even, within -`largest` to `largest`; float32 divides.

    `block`: so many numbers of a row have a scale together, instead of all.
    """
    if block is not None:
        numbers = np.asarray(rows, np.float32)
        parts = [
            fake_quantize_tokens(numbers[:, i : i + block], scale, None, largest)
            for i in range(0, numbers.shape[1], block)
        ]
        return np.concatenate(parts, axis=1)
    scales = token_scales(rows, scale, largest)
    divided = np.asarray(rows, np.float32) / scales.astype(np.float32)
    return np.clip(np.rint(divided), -largest, largest).astype(np.float64) * scales


def quantized_matmul(
    rows: npt.ArrayLike,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    scale: float | None = None,
    block: int | None = None,
    largest: int = LARGEST_CODE,
) -> Array:
    """rows [rows, inputs] times weight [columns, inputs], the numbers that its codes stand for, plus bias."""
    product: Array = fake_quantize_tokens(rows, scale, block, largest) @ np.asarray(weight, np.float64).T
    return product if bias is None else product + np.asarray(bias, np.float64)
