"""What the normalizations of residual sums and the activations of domain `slipway` mean, in float32."""

from __future__ import annotations

import math

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


def skip_layer_normalization(
    first: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_bias: Tensor | None,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """((sum - mean) / sqrt(variance + epsilon) * weight + bias, sum) with sum = first + skip + input_bias,
    over the last axis; absent biases are zero.

    LayerNorm: Ba, Kiros and Hinton 2016, https://arxiv.org/abs/1607.06450.
    """
    total = first.float() + skip.float()
    if input_bias is not None:
        total = total + input_bias.float()
    centred = total - total.mean(dim=-1, keepdim=True)
    normalized = centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + epsilon)
    normalized = normalized * weight.float()
    return normalized if bias is None else normalized + bias.float(), total


def gelu(x: Tensor, tanh: bool) -> Tensor:
    """x / 2 * (1 + erf(x / sqrt(2))), or its approximation by tanh (Hendrycks and Gimpel 2016,
    https://arxiv.org/abs/1606.08415)."""
    x = x.float()
    if tanh:
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / 2 * (1 + torch.erf(x / math.sqrt(2)))


def bias_gelu(x: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    """gelu(x + bias), the bias over the last axis."""
    return gelu(x.float() + bias.float(), tanh)


def geglu(gate_up: Tensor, tanh: bool) -> Tensor:
    """gelu(first half) * second half of the last axis (Shazeer 2020, https://arxiv.org/abs/2002.05202)."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return gelu(gate, tanh) * up
