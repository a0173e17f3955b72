"""What `slipway::PagedAttention` means: float32, one request after the other, no tricks.

`paged_attention` writes and attends, `attend_pools` attends to what the pools hold (quantized ones too).

Paged attention: Kwon et al. 2023, https://arxiv.org/abs/2309.06180. Softcap: Gemma 2. Sinks: a logit a head
that takes part in the softmax and has no value (gpt-oss). ALiBi: https://arxiv.org/abs/2108.12409. Distance bias:
the relative positions of T5, https://arxiv.org/abs/1910.10683.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .rotary import apply_rotary


def paged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cu_seqlens: Tensor,
    past_lens: Tensor,
    block_table: Tensor,
    slot_mapping: Tensor,
    head_sink: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    distance_bias: Tensor | None = None,
    scale: float = 0.0,
    softcap: float = 0.0,
    local_window_size: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Writes the new keys and values into copies of the pools, then attends, request by request.

    query [tokens, heads, head_dim], key [tokens, kv_heads, head_dim], value [tokens, kv_heads, value_dim];
    pools, lengths, block table and slots as in `plugins.schemas.PAGED_ATTENTION`. Token t of sequence b has
    position past_lens[b] + t - cu_seqlens[b] and sees the cache rows of its sequence up to its own position.
    Rows from cu_seqlens[-1] on are padding: nothing of them is written, and their output is zero.
    Returns (output [tokens, heads, value_dim] in query's dtype, key pool, value pool).
    """
    key_cache, value_cache = key_cache.clone(), value_cache.clone()
    live = torch.arange(len(slot_mapping)) < cu_seqlens[-1]
    written = (slot_mapping >= 0) & live
    slots = slot_mapping[written].long()
    key_cache.view(-1, *key_cache.shape[2:])[slots] = key[written].to(key_cache.dtype)
    value_cache.view(-1, *value_cache.shape[2:])[slots] = value[written].to(value_cache.dtype)

    result = attend_pools(
        query,
        key_cache,
        value_cache,
        cu_seqlens,
        past_lens,
        block_table,
        head_sink=head_sink,
        alibi_slopes=alibi_slopes,
        distance_bias=distance_bias,
        scale=scale,
        softcap=softcap,
        local_window_size=local_window_size,
    )
    return result.output.to(query.dtype), key_cache, value_cache


class Attended(NamedTuple):
    """float32; padding rows have output 0 and log_sum_exp -inf."""

    output: Tensor  # [tokens, heads, value_dim]
    log_sum_exp: Tensor  # [tokens, heads], of a row's scores and sink


def attend_pools(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    cu_seqlens: Tensor,
    past_lens: Tensor,
    block_table: Tensor,
    *,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    head_sink: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    distance_bias: Tensor | None = None,
    tree_mask: Tensor | None = None,
    scale: float = 0.0,
    softcap: float = 0.0,
    local_window_size: int = -1,
) -> Attended:
    """Attention of new tokens to their own sequences, whose rows the pools hold already, the new ones included.

    key_scale and value_scale are factors of quantized pools: [kv_heads] or [1], or one a row of the pools
    [num_blocks, block_size, kv_heads]. tree_mask [tokens, max_new]: new token i of a sequence sees new token
    j <= i only if its row has True at j. Block table entries before a window and beyond the end are not looked at.
    """
    scale = scale or float(query.shape[-1]) ** -0.5
    output = torch.zeros(query.shape[0], query.shape[1], value_cache.shape[3])
    log_sum_exp = torch.full(query.shape[:2], float("-inf"))
    block_size = key_cache.shape[1]
    for sequence in range(past_lens.shape[0]):
        start, end = int(cu_seqlens[sequence]), int(cu_seqlens[sequence + 1])
        if start == end:
            continue
        past = int(past_lens[sequence])
        length = past + end - start
        first = max(0, past + 1 - local_window_size) if local_window_size >= 0 else 0
        positions = torch.arange(min(first, length - 1), length)
        blocks, offsets = block_table[sequence, positions // block_size].long(), positions % block_size

        def rows(
            pool: Tensor, factor: Tensor | None, at: tuple[Tensor, Tensor] = (blocks, offsets)
        ) -> Tensor:
            gathered = pool.view(torch.uint8)[at].view(pool.dtype).float()
            if factor is None:
                return gathered
            return gathered * (factor[at] if factor.dim() == 3 else factor)[..., None]

        tree = None if tree_mask is None else tree_mask[start:end, : end - start]
        output[start:end], log_sum_exp[start:end] = attend_sequence(
            query[start:end].float(),
            rows(key_cache, key_scale),
            rows(value_cache, value_scale),
            head_sink=head_sink,
            alibi_slopes=alibi_slopes,
            distance_bias=distance_bias,
            tree_mask=tree,
            scale=scale,
            softcap=softcap,
            local_window_size=local_window_size,
        )
    return Attended(output, log_sum_exp)


def causal_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    head_sink: Tensor | None,
    alibi_slopes: Tensor | None,
    distance_bias: Tensor | None = None,
    scale: float,
    softcap: float,
    local_window_size: int,
) -> Tensor:
    """The output of `attend_sequence` without a tree mask."""
    return attend_sequence(
        query,
        keys,
        values,
        head_sink=head_sink,
        alibi_slopes=alibi_slopes,
        distance_bias=distance_bias,
        scale=scale,
        softcap=softcap,
        local_window_size=local_window_size,
    ).output


def attend_sequence(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    head_sink: Tensor | None,
    alibi_slopes: Tensor | None,
    distance_bias: Tensor | None = None,
    tree_mask: Tensor | None = None,
    scale: float,
    softcap: float,
    local_window_size: int,
) -> Attended:
    """One sequence: the queries are its last positions. All float32.

    query [new, heads, head_dim], keys [length, kv_heads, head_dim], values [length, kv_heads, value_dim];
    heads is a multiple of kv_heads (query head h reads key head h // (heads / kv_heads)). tree_mask [new, max_new].
    distance_bias [heads, distances]: column query position - key position, the last one for all that are farther.
    A query that sees no key and has no sink gets 0.
    """
    new, heads, _ = query.shape
    length = keys.shape[0]
    group = heads // keys.shape[1]
    keys = keys.repeat_interleave(group, dim=1)
    values = values.repeat_interleave(group, dim=1)
    query_positions = torch.arange(length - new, length)[:, None]
    key_positions = torch.arange(length)[None, :]

    scores = torch.einsum("qhd,khd->hqk", query, keys) * scale
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)
    if alibi_slopes is not None:
        scores = scores + alibi_slopes.float()[:, None, None] * (key_positions - query_positions)
    if distance_bias is not None:
        distances = (query_positions - key_positions).clamp(0, distance_bias.shape[1] - 1)
        scores = scores + distance_bias.float()[:, distances]
    visible = key_positions <= query_positions
    if local_window_size >= 0:
        visible &= key_positions > query_positions - local_window_size
    if tree_mask is not None:
        visible[:, length - new :] &= tree_mask[:, :new]
    scores = scores.masked_fill(~visible, float("-inf"))
    sinks = scores[..., :0] if head_sink is None else head_sink.float()[:, None, None].expand(heads, new, 1)
    log_sum_exp = torch.logsumexp(torch.cat([scores, sinks], dim=-1), dim=-1)
    probabilities = torch.exp(scores - log_sum_exp.clamp(min=torch.finfo(torch.float32).min)[..., None])
    output = torch.einsum("hqk,khd->qhd", probabilities, values)
    return Attended(output, log_sum_exp.T)


@dataclass(frozen=True)
class PagedAttentionNode:
    """The operator as a node of a graph sees it: flat rows, packed or apart, with rotary embedding.

    The attributes are those of `plugins.schemas.PAGED_ATTENTION`.
    """

    num_heads: int
    kv_num_heads: int
    scale: float = 0.0
    softcap: float = 0.0
    do_rotary: int = 0
    rotary_interleaved: int = 0
    local_window_size: int = -1

    def __call__(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Takes inputs by their schema name. Returns (output [tokens, num_heads * value_dim], pools)."""
        query, key, value = self._split(inputs)
        if self.do_rotary:
            cos, sin, positions = inputs["cos_cache"], inputs["sin_cache"], inputs["position_ids"]
            interleaved = bool(self.rotary_interleaved)
            query = apply_rotary(query, cos, sin, positions, interleaved=interleaved)
            key = apply_rotary(key, cos, sin, positions, interleaved=interleaved)
        output, key_cache, value_cache = paged_attention(
            query,
            key,
            value,
            inputs["key_cache"],
            inputs["value_cache"],
            inputs["cumulative_sequence_length"],
            inputs["past_seqlens"],
            inputs["block_table"],
            inputs["slot_mapping"],
            head_sink=inputs.get("head_sink"),
            alibi_slopes=inputs.get("alibi_slopes"),
            distance_bias=inputs.get("distance_bias"),
            scale=self.scale,
            softcap=self.softcap,
            local_window_size=self.local_window_size,
        )
        return output.flatten(1).to(inputs["query"].dtype), key_cache, value_cache

    def _split(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """query, key and value as [tokens, heads, size]."""
        query = inputs["query"]
        tokens = query.shape[0]
        head_dim, value_dim = inputs["key_cache"].shape[3], inputs["value_cache"].shape[3]
        if "key" in inputs:
            key, value = inputs["key"], inputs["value"]
        else:
            rows = [self.num_heads * head_dim, self.kv_num_heads * head_dim, self.kv_num_heads * head_dim]
            query, key, value = torch.split(query, rows, dim=1)
        return (
            query.reshape(tokens, self.num_heads, head_dim),
            key.reshape(tokens, self.kv_num_heads, head_dim),
            value.reshape(tokens, self.kv_num_heads, value_dim),
        )
