"""What `gated_activation` and `activation` mean, in float32."""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor


class Activation(IntEnum):
    """The functions, by the value of the operators' attribute `activation`."""

    SILU = 0
    GELU_TANH = 1
    GELU_ERF = 2


def activated(x: Tensor, kind: Activation) -> Tensor:
    """silu x / (1 + exp(-x)); gelu x / 2 (1 + erf(x / sqrt 2)), or its form with tanh.

    GELU: Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415.
    """
    x = x.float()
    if kind is Activation.SILU:
        return x * torch.sigmoid(x)
    if kind is Activation.GELU_TANH:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def gated_activation(gate_up: Tensor, kind: Activation) -> Tensor:
    """f(gate) * up; gate_up [rows, 2 * intermediate] holds gate, then up. Shazeer 2020, arXiv 2002.05202."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return activated(gate, kind) * up


def activation(rows: Tensor, bias: Tensor | None, kind: Activation) -> Tensor:
    """f(rows + bias); rows [tokens, hidden], bias [hidden]."""
    return activated(rows.float() if bias is None else rows.float() + bias.float(), kind)
