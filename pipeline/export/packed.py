"""The wrapper whose forward has the decoder contract's inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import plugins.ops  # noqa: F401  registers torch.ops.slipway.paged_attention

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
        step = _PagedStep(self.layers, pools, (cu_seqlens, past_lens, block_table, slot_mapping))
        with answering(step):
            logits = packed_logits(self.model, input_ids, position_ids, logits_indices)
        return (logits.float(), *step.pools)


class _PagedStep:
    """Answers each layer with the paged attention operator on that layer's pools."""

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        pools: Sequence[Tensor],
        step: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> None:
        self.pools = list(pools)
        self._layers = layers
        self._step = step
        self._calls = 0

    def attend(self, call: AttentionCall) -> Tensor:
        """Paged attention; the layer's pools are replaced by the written ones."""
        layer = self._calls if call.layer is None else call.layer
        self._calls += 1
        output, self.pools[2 * layer], self.pools[2 * layer + 1] = torch.ops.slipway.paged_attention(
            call.query,
            call.key,
            call.value,
            self.pools[2 * layer],
            self.pools[2 * layer + 1],
            *self._step,
            call.sink,
            None,
            call.scale,
            call.softcap,
            self._layers[layer].window or -1,
        )
        attended: Tensor = output
        return attended
