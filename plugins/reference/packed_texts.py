"""What the operators of packed texts mean: one text after the other, no tricks, in the precision of what is given.

Texts lie one after the other: text b is rows cu_seqlens[b] to cu_seqlens[b + 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rotary import apply_rotary


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    bias: Tensor | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
    scale: float = 0.0,
    left: int = -1,
    right: int = -1,
    interleaved: bool = False,
) -> Tensor:
    """Scaled dot-product attention within each text (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

    query [tokens, heads, head_dim], key [tokens, kv_heads, head_dim], value [tokens, kv_heads, value_dim]; bias [1 or
    heads, length, length]; rotary: cosines and sines [positions, rotary_dim / 2]. The query at position p of its text
    sees positions p - left to p + right; -1 means all. Returns [tokens, heads, value_dim]; rows of no text are zero.
    """
    scale = scale or float(query.shape[-1]) ** -0.5
    group = query.shape[1] // key.shape[1]
    output = torch.zeros(query.shape[0], query.shape[1], value.shape[2], dtype=query.dtype)
    for start, end in zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:], strict=False):
        q, k, v = (rows[start:end] for rows in (query, key, value))
        positions = torch.arange(end - start)
        if rotary is not None:
            q, k = (apply_rotary(rows, *rotary, positions, interleaved=interleaved) for rows in (q, k))
            q, k = q.to(query.dtype), k.to(query.dtype)
        k, v = (rows.repeat_interleave(group, dim=1) for rows in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        if bias is not None:
            scores = scores + bias[:, : end - start, : end - start]
        ahead = positions[None, :] - positions[:, None]
        hidden = (ahead < -left) & (left >= 0) | (ahead > right) & (right >= 0)
        weights = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)
        output[start:end] = torch.einsum("hqk,khd->qhd", weights, v)
    return output


def packed_layout(attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the tokens in batch * length, their positions, and cu_seqlens, int32 each.

    attention_mask [batch, length]: ones, then zeros. Fewer than two rows are filled up with place 0.
    """
    rows = attention_mask.flatten().nonzero().squeeze(1)
    rows = torch.nn.functional.pad(rows, (0, max(0, 2 - len(rows))))
    starts = torch.nn.functional.pad(attention_mask.sum(dim=1).cumsum(dim=0), (1, 0))
    return rows.int(), (rows % attention_mask.shape[1]).int(), starts.int()


def packed_pool(rows: Tensor, cu_seqlens: Tensor, kind: int) -> Tensor:
    """rows [tokens, width] -> [batch, width]: 0 sum, 1 maximum, 2 first, 3 last; zeros for an empty text."""
    pooled = torch.zeros(len(cu_seqlens) - 1, rows.shape[1], dtype=rows.dtype)
    for text, (start, end) in enumerate(zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:], strict=False)):
        if start < end:
            own = rows[start:end]
            pooled[text] = (own.sum(dim=0), own.max(dim=0).values, own[0], own[-1])[kind]
    return pooled


def unpacked_rows(rows: Tensor, cu_seqlens: Tensor, length: int) -> Tensor:
    """rows [tokens, ...] -> [batch, length, ...], zeros for padding."""
    padded = torch.zeros(len(cu_seqlens) - 1, length, *rows.shape[1:], dtype=rows.dtype)
    for text, (start, end) in enumerate(zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:], strict=False)):
        padded[text, : end - start] = rows[start:end]
    return padded


def embed_layer_normalization(
    lookups: list[tuple[Tensor, Tensor]], weight: Tensor, bias: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor]:
    """LayerNorm of the sum of table rows, and the sum. lookups: (ids, table [entries, hidden]) each."""
    total = lookups[0][1][lookups[0][0]]
    for ids, table in lookups[1:]:
        total = total + table[ids]
    return torch.nn.functional.layer_norm(total, weight.shape, weight, bias, epsilon), total
