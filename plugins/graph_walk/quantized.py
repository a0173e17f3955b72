"""QuantizeLinear and DequantizeLinear as what they mean, in float32: codes, and values that codes stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from .description import DTYPES, Node


def quantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """round(x / scale) + zero, ties to even, clipped to what the codes' type holds; of `zero`'s type, uint8 without."""
    dtype = torch.uint8 if zero is None else zero.dtype
    rows = x.float() / _spread(node, scale, x.shape).float()
    if dtype == torch.float8_e4m3fn:
        most = torch.finfo(dtype).max
        return rows.clamp(-most, most).to(dtype)
    bounds = torch.iinfo(dtype)
    rows = rows.round()
    if zero is not None:
        rows = rows + _spread(node, zero, x.shape).float()
    return rows.clamp(bounds.min, bounds.max).to(dtype)


def dequantize(node: Node, codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """(code - zero) * scale in `output_dtype`, or the scales' type."""
    values = codes.float()
    if zero is not None:
        values = values - _spread(node, zero, codes.shape).float()
    values = values * _spread(node, scale, codes.shape).float()
    return values.to(_output_type(node, scale))


def _output_type(node: Node, scale: Tensor) -> torch.dtype:
    names = {1: "float32", 10: "float16", 16: "bfloat16"}
    return DTYPES[names[node.integer("output_dtype", 0)]] if node.integer("output_dtype", 0) else scale.dtype


def _spread(node: Node, factor: Tensor, shape: torch.Size) -> Tensor:
    """One factor for all, one for each place of `axis`, or one for each block of `block_size` places there."""
    if factor.numel() == 1 and factor.dim() <= 1:
        return factor.reshape(())
    axis = node.integer("axis", 1) % len(shape)
    block = node.integer("block_size", 0)
    if block:
        return factor.repeat_interleave(block, dim=axis).narrow(axis, 0, shape[axis])
    return factor.reshape([-1 if place == axis else 1 for place in range(len(shape))])
