"""The text model of a vision-language model on packed steps: rows of images take the place of tokens' embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .attention import UnsupportedModel
from .packed import PackedDecoder


class PackedEmbedDecoder(PackedDecoder):
    """As `PackedDecoder`; some tokens get the row of an image for their own embedding."""

    def forward(  # type: ignore[override]  # two inputs more
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        past_lens: Tensor,
        block_table: Tensor,
        slot_mapping: Tensor,
        logits_indices: Tensor,
        prompt_embeds: Tensor,
        embed_index: Tensor,
        pools: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Inputs as `contract.decoder_inputs`; pools and results as those of `PackedDecoder.forward`."""
        step = (input_ids, position_ids, cu_seqlens, past_lens, block_table, slot_mapping, logits_indices)
        with embeddings_replaced(self.model, prompt_embeds, embed_index):
            return super().forward(*step, pools)


@contextmanager
def embeddings_replaced(model: PreTrainedModel, rows: Tensor, index: Tensor) -> Iterator[None]:
    """Tokens whose `index` [tokens] is not below 0 get that row of `rows` [rows, hidden] for their own embedding.

    Raises UnsupportedModel when the embeddings are not looked up exactly once.
    """
    calls = 0

    def replace(_: nn.Module, __: tuple[Any, ...], own: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        given = rows.index_select(0, index.clamp(min=0))
        return torch.where((index >= 0)[:, None], given, own)

    hook = model.get_input_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()
    if calls != 1:
        raise UnsupportedModel(
            f"{type(model).__name__} looks up its tokens' embeddings {calls} times; once is supported"
        )
