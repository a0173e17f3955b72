"""What `kv_write` means: new keys and values into the pools, in float32, by plain indexing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .rotary import apply_rotary

LEAST_SCALE = torch.finfo(torch.float32).tiny
"""A row whose own scale would be less has scale 0 and elements 0: 1 / scale could overflow."""

MOST: Mapping[torch.dtype, float] = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The largest element that quantized pools hold."""


@dataclass(frozen=True)
class Rotary:
    """cos and sin [max_positions, rotary_dim / 2], and how pairs lie (see `apply_rotary`)."""

    cos: Tensor
    sin: Tensor
    interleaved: bool = False


@dataclass(frozen=True)
class StaticScales:
    """Factors of the pools' elements, given: float32 [kv_heads], or [1] for all heads."""

    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class TokenScales:
    """Pools of the rows' own factors, written with the rows: float32 [num_blocks, block_size, kv_heads]."""

    key: Tensor
    value: Tensor


@dataclass(frozen=True)
class Written:
    """The pools after the write, scale pools where rows have their own scale, and the turned queries."""

    key_cache: Tensor
    value_cache: Tensor
    token_scales: TokenScales | None
    query: Tensor | None


def rms_norm(heads: Tensor, weight: Tensor | None, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis, float32; x itself without a weight."""
    x = heads.float()
    if weight is None:
        return x
    return x * (1.0 / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + epsilon)) * weight.float()


def row_scales(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The scale of each row (last axis) of float32 `rows` that puts its largest element at the edge of `dtype`."""
    scale = rows.abs().amax(dim=-1) / MOST[dtype]
    return torch.where(scale < LEAST_SCALE, 0.0, scale)


def quantized(rows: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """round(x * (1 / scale)) to the nearest of `dtype`, ties to even, clipped; 0 where scale is 0.

    rows: float32 [..., size]; scale: float32 [...]. int8 has no -128.
    """
    inverse = torch.where(scale == 0, 0.0, 1.0 / scale)[..., None]
    x = (rows * inverse).clamp(-MOST[dtype], MOST[dtype])
    return (x.round() if dtype == torch.int8 else x).to(dtype)


def kv_write(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    position_ids: Tensor | None = None,
    rotary: Rotary | None = None,
    scales: StaticScales | TokenScales | None = None,
    key_norm_weight: Tensor | None = None,
    query_norm_weight: Tensor | None = None,
    epsilon: float = 1e-6,
    query: Tensor | None = None,
    query_out: Tensor | None = None,
) -> Written:
    """Rows of key [tokens, kv_heads, key_dim] and value [tokens, kv_heads, value_dim] to copies of the pools.

    Pools [num_blocks, block_size, kv_heads, size]; slot = block * block_size + offset, negative: not written. Keys
    and queries [tokens, heads, key_dim] are normed, then turned; values are not. Rows from cu_seqlens[-1] on are
    padding: not written, and their queries stay what query_out (zeros when absent) holds. Quantized pools need
    `scales`; everything before the last rounding is float32.
    """
    live = torch.arange(len(slot_mapping))
    if cu_seqlens is not None:
        live = live[: int(cu_seqlens[-1])]

    def turned(heads: Tensor, weight: Tensor | None, rows: Tensor) -> Tensor:
        x = rms_norm(heads[rows], weight, epsilon)
        if rotary is None:
            return x
        assert position_ids is not None, "rotary needs position_ids"
        return apply_rotary(x, rotary.cos, rotary.sin, position_ids[rows], interleaved=rotary.interleaved)

    written = live[slot_mapping[live] >= 0]
    slots = slot_mapping[written].long()
    rows = {"key": turned(key, key_norm_weight, written), "value": value[written].float()}
    pools = {"key": key_cache.clone(), "value": value_cache.clone()}
    token_scales = (
        TokenScales(scales.key.clone(), scales.value.clone()) if isinstance(scales, TokenScales) else None
    )
    for name, pool in pools.items():
        x = rows[name]
        if pool.dtype in MOST:
            if token_scales is not None:
                scale = row_scales(x, pool.dtype)
                getattr(token_scales, name).view(-1, x.shape[1])[slots] = scale
            else:
                assert isinstance(scales, StaticScales), f"pools of {pool.dtype} need scales"
                scale = getattr(scales, name).expand(x.shape[1]).expand(x.shape[:2])
            x = quantized(x, scale, pool.dtype)
        raw = x.to(pool.dtype).view(torch.uint8)  # float8 has no indexed assignment
        pool.view(torch.uint8).view(-1, *raw.shape[1:])[slots] = raw

    new_query = None
    if query is not None:
        new_query = torch.zeros_like(query) if query_out is None else query_out.clone()
        new_query[live] = turned(query, query_norm_weight, live).to(query.dtype)
    return Written(pools["key"], pools["value"], token_scales, new_query)
