"""How the operators over rows (norms, activations) quantize their results, in float32."""

from __future__ import annotations

import torch
from torch import Tensor

MOST: dict[torch.dtype, float] = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The largest magnitude of a code; quantization is symmetric."""

LEAST_SCALE = torch.finfo(torch.float32).tiny
"""A row whose own scale would be less has scale 0 and codes 0."""


def row_scales(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest magnitude of each row of `values` [rows, columns] over that of a code, float32 [rows]."""
    scales = values.float().abs().amax(dim=-1) / MOST[dtype]
    return torch.where(scales >= LEAST_SCALE, scales, torch.zeros(()))


def quantize(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """round(values / scale) to the nearest code of `dtype`, ties to even, saturating at +-127 or +-448.

    values [rows, columns], scale [1] or [rows]; where the scale is 0 the codes are 0 (or -0). Values are taken as they
    are in float32, not rounded to the 16-bit type of what they were computed from.
    """
    values = values.float()
    codes = torch.where(scale[:, None] > 0, values / scale[:, None], values * 0)
    codes = codes.clamp(-MOST[dtype], MOST[dtype])
    return (codes.round() if dtype == torch.int8 else codes).to(dtype)
