"""What `flash_attention` means: attention of packed sequences without a cache, float32, one after the other.

FlashAttention-2: https://arxiv.org/abs/2307.08691. ALiBi: https://arxiv.org/abs/2108.12409. Softcap: Gemma 2. Sinks: a
logit a head that takes part in the softmax and has no value (gpt-oss).
"""

from __future__ import annotations

import torch
from torch import Tensor


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    alibi_slopes: Tensor | None = None,
    bias: Tensor | None = None,
    head_sink: Tensor | None = None,
    query_scale: Tensor | None = None,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    scale: float = 0.0,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    softcap: float = 0.0,
    output_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of each sequence's queries to its keys.

    query [tokens_q, heads, head_dim], key [tokens_k, kv_heads, head_dim], value [tokens_k, kv_heads, value_dim];
    cu_seqlens_q, cu_seqlens_k [batch + 1] int32: sequence b has rows cu[b] to cu[b + 1]. bias [batch or 1, heads or 1,
    max_q, max_k], by row within the sequence. head_sink, alibi_slopes, query_scale [heads], key_scale and value_scale
    [kv_heads]: what the elements are to be multiplied by. scale 0 means 1 / sqrt(head_dim).

    Returns (output [tokens_q, heads, value_dim] in output_dtype, default query's; log-sum-exp [heads, tokens_q]
    float32, natural). Rows that see no key have output 0, and without sinks log-sum-exp -inf; both hold for rows
    beyond the last sequence.
    """
    tokens, heads, head_dim = query.shape
    scale = scale or float(head_dim) ** -0.5
    output = torch.zeros(tokens, heads, value.shape[2])
    log_sum_exp = torch.full((heads, tokens), -torch.inf)
    for sequence in range(len(cu_seqlens_q) - 1):
        q0, q1 = int(cu_seqlens_q[sequence]), int(cu_seqlens_q[sequence + 1])
        k0, k1 = int(cu_seqlens_k[sequence]), int(cu_seqlens_k[sequence + 1])
        if q0 == q1:
            continue
        added = None
        if bias is not None:
            added = bias[sequence if bias.shape[0] > 1 else 0, :, : q1 - q0, : k1 - k0].float()
        output[q0:q1], log_sum_exp[:, q0:q1] = attend(
            _scaled(query[q0:q1], query_scale),
            _scaled(key[k0:k1], key_scale),
            _scaled(value[k0:k1], value_scale),
            alibi_slopes=alibi_slopes,
            bias=added,
            head_sink=head_sink,
            scale=scale,
            causal=causal,
            window_left=window_left,
            window_right=window_right,
            softcap=softcap,
        )
    return output.to(output_dtype or query.dtype), log_sum_exp


def visible_keys(queries: int, keys: int, *, causal: bool, window_left: int, window_right: int) -> Tensor:
    """Which keys each query sees, bool [queries, keys].

    The queries are the sequence's last positions ("lower right"): query i has position i + keys - queries. It sees
    the window_left last keys, its own included, and the window_right next ones; -1 means all. Causal: no next ones.
    """
    position = torch.arange(queries)[:, None] + keys - queries
    key = torch.arange(keys)[None, :]
    visible = torch.ones(queries, keys, dtype=torch.bool)
    if causal:
        window_right = 0
    if window_right >= 0:
        visible &= key <= position + window_right
    if window_left >= 0:
        visible &= key > position - window_left
    return visible


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    alibi_slopes: Tensor | None,
    bias: Tensor | None,
    head_sink: Tensor | None,
    scale: float,
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
) -> tuple[Tensor, Tensor]:
    """One sequence, all float32.

    query [queries, heads, head_dim], key [keys, kv_heads, head_dim], value [keys, kv_heads, value_dim]; query head
    h reads key head h // (heads / kv_heads); bias [heads or 1, queries, keys]. Order: scale, softcap,
    ALiBi, bias, mask.
    Returns (output [queries, heads, value_dim], log-sum-exp [heads, queries], the sink's part included).
    """
    queries, heads, _ = query.shape
    keys = key.shape[0]
    group = heads // key.shape[1]
    key = key.repeat_interleave(group, dim=1)
    value = value.repeat_interleave(group, dim=1)

    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if alibi_slopes is not None:
        distance = torch.arange(queries)[:, None] + keys - queries - torch.arange(keys)[None, :]
        scores = scores - alibi_slopes.float()[:, None, None] * distance.abs()
    if bias is not None:
        scores = scores + bias
    visible = visible_keys(queries, keys, causal=causal, window_left=window_left, window_right=window_right)
    scores = scores.masked_fill(~visible, -torch.inf)
    if head_sink is not None:
        sink = head_sink.float()[:, None, None].expand(heads, queries, 1)
        scores = torch.cat([scores, sink], dim=-1)
    log_sum_exp = torch.logsumexp(scores, dim=-1)
    seen = torch.isfinite(log_sum_exp)[..., None]
    weights = torch.exp(scores - torch.where(seen, log_sum_exp[..., None], 0.0))[..., :keys]
    return torch.einsum("hqk,khd->qhd", weights, value), log_sum_exp


def _scaled(tensor: Tensor, scale: Tensor | None) -> Tensor:
    """tensor [rows, heads, size] in float32, times scale [heads]."""
    return tensor.float() if scale is None else tensor.float() * scale[None, :, None]
