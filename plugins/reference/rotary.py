"""Rotary position embedding from tables (Su et al. 2021, https://arxiv.org/abs/2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor


def apply_rotary(
    heads: Tensor, cos_cache: Tensor, sin_cache: Tensor, position_ids: Tensor, *, interleaved: bool
) -> Tensor:
    """Turns each pair (a, b) of a head by its angle: (a cos - b sin, b cos + a sin).

    heads: [tokens, heads, head_dim]. cos_cache, sin_cache: [max_positions, rotary_dim / 2], rotary_dim at
    most head_dim: elements from rotary_dim on pass through. position_ids: [tokens]. interleaved: the pairs
    are (0, 1), (2, 3), ...; otherwise element i of the first half of rotary_dim pairs with i of the second.
    Returns float32 of the shape of `heads`.
    """
    half = cos_cache.shape[1]
    positions = position_ids.long()
    cos = cos_cache.float()[positions][:, None, :]
    sin = sin_cache.float()[positions][:, None, :]
    turned = heads.float().clone()
    if interleaved:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    else:
        first, second = slice(0, half), slice(half, 2 * half)
    a, b = heads[..., first].float(), heads[..., second].float()
    turned[..., first] = a * cos - b * sin
    turned[..., second] = b * cos + a * sin
    return turned


def rotary_tables(max_positions: int, rotary_dim: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos and sin [max_positions, rotary_dim / 2] of the angles position * theta ** (-2 i / rotary_dim)."""
    frequencies = theta ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    angles = torch.arange(max_positions, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()
