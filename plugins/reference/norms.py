"""What `rms_norm` and `layer_norm` mean, in float32, row by row."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(
    rows: Tensor,
    weight: Tensor,
    *,
    skip: Tensor | None = None,
    bias: Tensor | None = None,
    epsilon: float = 1e-6,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(x / sqrt(mean(x^2) + epsilon) * (weight + weight_offset) + bias, x) with x = rows + skip.

    rows and skip [tokens, hidden], weight and bias [hidden]; weight_offset is 1 for Gemma, whose weights are stored
    less 1. The result is normalized from the sum in float32, not from the sum rounded to the rows' type.
    RMSNorm: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """
    return _normalized(rows, weight, skip, bias, epsilon, weight_offset, centered=False)


def layer_norm(
    rows: Tensor,
    weight: Tensor,
    *,
    skip: Tensor | None = None,
    bias: Tensor | None = None,
    epsilon: float = 1e-6,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """((x - mean) / sqrt(variance + epsilon) * (weight + weight_offset) + bias, x) with x = rows + skip.

    The variance is the mean of (x - mean)^2. LayerNorm: Ba et al. 2016, https://arxiv.org/abs/1607.06450.
    """
    return _normalized(rows, weight, skip, bias, epsilon, weight_offset, centered=True)


def _normalized(
    rows: Tensor,
    weight: Tensor,
    skip: Tensor | None,
    bias: Tensor | None,
    epsilon: float,
    weight_offset: float,
    *,
    centered: bool,
) -> tuple[Tensor, Tensor]:
    total = rows.float() if skip is None else rows.float() + skip.float()
    deviation = total - total.mean(dim=-1, keepdim=True) if centered else total
    factor = torch.rsqrt(deviation.square().mean(dim=-1, keepdim=True) + epsilon)
    result = deviation * factor * (weight.float() + weight_offset)
    return (result if bias is None else result + bias.float()), total
