"""What `weight_only_gemm` means, in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from plugins.weight_layout import SYMMETRIC_ZERO, PackedWeight, unpack_codes, unpack_groups


def dequantized(packed: PackedWeight) -> Tensor:
    """W [k, n] float32: (code - zero point) * scale."""
    codes = unpack_codes(packed.weight, packed.k, packed.n).float()
    if packed.scale is None:
        assert packed.channel_scale is not None
        return codes * packed.channel_scale
    zero: Tensor | float = SYMMETRIC_ZERO if packed.weight.dtype == torch.uint8 else 0.0
    if packed.zero_point is not None:
        zero = _of_each_k(unpack_groups(packed.zero_point, packed.n).float(), packed)
    return (codes - zero) * _of_each_k(unpack_groups(packed.scale, packed.n).float(), packed)


def _of_each_k(values: Tensor, packed: PackedWeight) -> Tensor:
    """[groups, n] to [k, n]."""
    return values.repeat_interleave(packed.group, dim=0)[: packed.k]


def weight_only_gemm(x: Tensor, packed: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """x [rows, k] times W, plus bias [n]; float32 [rows, n]."""
    product = x.float() @ dequantized(packed)
    return product if bias is None else product + bias.float()
