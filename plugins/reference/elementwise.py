"""What `slipway::SkipRMSNormalization` and `slipway::SwiGLU` mean, in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def skip_rms_normalization(
    first: Tensor, skip: Tensor, weight: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """(sum / sqrt(mean(sum ** 2) + epsilon) * weight, sum) with sum = first + skip, over the last axis.

    RMSNorm: Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.
    """
    total = first.float() + skip.float()
    normalized = total * torch.rsqrt(total.square().mean(dim=-1, keepdim=True) + epsilon)
    return normalized * weight.float(), total


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(first half) * second half of the last axis (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up
