"""The wrappers whose forward has the decoder contract's inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import plugins.ops  # noqa: F401  registers torch.ops.slipway.paged_attention
from model_repo.runtime.contract import CROSS

from .attention import AttentionCall, answering
from .head import packed_logits
from .probe import LayerSpec


class PackedDecoder(nn.Module):
    """A decoder over the packed step: `model` must be under paged attention, `layers` as probed."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[LayerSpec]) -> None:
        super().__init__()
        self.model = model
        self.layers = tuple(layers)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        past_lens: Tensor,
        block_table: Tensor,
        slot_mapping: Tensor,
        logits_indices: Tensor,
        pools: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Inputs as `contract.STEP_INPUTS`; pools: key and value pool of layer 0, of layer 1, ...

        Returns (logits float32 [selected, vocab], pools with the step's rows written, in the same order).
        """
        step = _PagedStep(self.layers, pools, ((cu_seqlens, past_lens, block_table, slot_mapping),))
        with answering(step):
            logits = packed_logits(self.model, input_ids, position_ids, logits_indices)
        return (logits.float(), *step.pools)


class PackedCrossDecoder(nn.Module):
    """The decoder of an encoder-decoder: `layers` as probed with `encoder_hidden`, which is never looked at."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[LayerSpec], encoder_hidden: Tensor) -> None:
        super().__init__()
        self.model = model
        self.layers = tuple(layers)
        self.encoder_hidden = encoder_hidden  # traced as a constant that no output depends on

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        past_lens: Tensor,
        block_table: Tensor,
        slot_mapping: Tensor,
        logits_indices: Tensor,
        cu_seqlens_1: Tensor,
        past_lens_1: Tensor,
        block_table_1: Tensor,
        slot_mapping_1: Tensor,
        pools: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Inputs as `contract.decoder_inputs`; pools and results as those of `PackedDecoder.forward`."""
        groups = (
            (cu_seqlens, past_lens, block_table, slot_mapping),
            (cu_seqlens_1, past_lens_1, block_table_1, slot_mapping_1),
        )
        step = _PagedStep(self.layers, pools, groups)
        hidden: Tensor = self.encoder_hidden
        with answering(step):
            logits = packed_logits(self.model, input_ids, position_ids, logits_indices, encoder_hidden=hidden)
        return (logits.float(), *step.pools)


GroupStep = tuple[Tensor, Tensor, Tensor, Tensor]
"""cu_seqlens, past_lens, block_table and slot_mapping of one KV group."""


class _PagedStep:
    """Answers each layer with the paged attention operator on that layer's pools."""

    def __init__(
        self, layers: Sequence[LayerSpec], pools: Sequence[Tensor], groups: Sequence[GroupStep]
    ) -> None:
        self.pools = list(pools)
        self._layers = layers
        self._groups = groups
        self._calls = 0

    def attend(self, call: AttentionCall) -> Tensor:
        """Paged attention; the layer's pools are replaced by the written ones."""
        in_order = call.layer is None or len(self._groups) > 1
        layer = self._calls if in_order or call.layer is None else call.layer
        self._calls += 1
        spec = self._layers[layer]
        key, value = call.key, call.value
        if spec.group == CROSS:
            # Nothing of them is written; the operator wants rows of that size.
            key = _part(call.query, spec.kv_heads, spec.key_dim)
            value = _part(call.query, spec.kv_heads, spec.value_dim)
        output, self.pools[2 * layer], self.pools[2 * layer + 1] = torch.ops.slipway.paged_attention(
            call.query,
            key,
            value,
            self.pools[2 * layer],
            self.pools[2 * layer + 1],
            *self._groups[spec.group],
            call.sink,
            None,
            spec.distance_bias,
            call.scale,
            call.softcap,
            spec.window or -1,
        )
        attended: Tensor = output
        return attended


def _part(rows: Tensor, heads: int, size: int) -> Tensor:
    """The first heads and elements of [tokens, heads, size]; the tensor itself when that is all of it."""
    return rows if rows.shape[1:] == (heads, size) else rows[:, :heads, :size].contiguous()
