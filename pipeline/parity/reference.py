"""The torch module itself, run on the parity inputs one by one: no packing, no padding, no cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pipeline.sources import Source


def run_module(source: Source, inputs: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
    """What `run_decoder` or `run_encoder` should give for these token ids, in float32.

    Loads the module and lets go of it: an export prepares its module in place, so that one is no reference.
    """
    model = source.load()
    with torch.inference_mode():
        if source.kind == "decoder":
            return [_logits(model, ids) for ids in inputs]
        return [_embedding(model, ids, source) for ids in inputs]


def _logits(model: PreTrainedModel, ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """float32 [len(ids), vocab]."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
    return np.asarray(logits[0].float().numpy(), np.float32)


def _embedding(model: PreTrainedModel, ids: Sequence[int], source: Source) -> npt.NDArray[np.float32]:
    """float32 [2, hidden], both rows the same: `run_encoder` gives one row batched and one alone."""
    hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0].double()
    pooled = hidden.mean(dim=0) if source.pooling == "mean" else hidden[0]
    if source.normalize:
        pooled = pooled / pooled.norm()
    return np.stack([pooled.float().numpy()] * 2)
