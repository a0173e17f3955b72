"""Relative positions that are added to the scores of self-attention (T5: https://arxiv.org/abs/1910.10683), as tables.

Models compute such a bias for every pair of tokens. What it adds is a function of the distance alone, so it is read
off the model's own calls of attention, and becomes the operator's input `distance_bias`: a column a distance, the last
one for all that are farther.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .attention import AttentionCall, UnsupportedModel, answering
from .head import packed_logits

_TOKENS = 512
"""Of the first reading; more are tried where the bias still changes in the farther half of it."""
_TOLERANCE = 1e-5
"""Of the largest bias: more is no rounding."""


def distance_biases(
    model: PreTrainedModel, max_length: int, encoder_hidden: Tensor | None = None
) -> list[Tensor | None]:
    """For each call of attention, in order, its bias [heads, distances] by query minus key position; None without one.

    `model` is under paged attention. `max_length`: tokens of the longest sequence; `encoder_hidden` as in
    `packed_logits`. Raises UnsupportedModel for a bias that tells more than the distance, and in cross-attention.
    """
    tokens = min(_TOKENS, max_length)
    while True:
        reader = _Reader(type(model).__name__)
        device = next(model.parameters()).device
        positions = torch.arange(tokens, dtype=torch.int32, device=device)
        ids = (4 + positions) % model.config.get_text_config().vocab_size
        with answering(reader), torch.no_grad():
            packed_logits(model, ids, positions, positions[:1], encoder_hidden=encoder_hidden)
        if tokens == max_length or all(
            table is None or 2 * table.shape[1] <= tokens for table in reader.tables
        ):
            return reader.tables
        tokens = min(2 * tokens, max_length)


class _Reader:
    """Keeps the tables of the calls' biases; answers attention with zeros."""

    def __init__(self, model_name: str) -> None:
        self.tables: list[Tensor | None] = []
        self._model_name = model_name

    def attend(self, call: AttentionCall) -> Tensor:
        """Raises UnsupportedModel."""
        bias = None if call.bias is None or not bool(call.bias.any()) else call.bias[0]
        self.tables.append(None if bias is None else self._table(call, bias))
        return call.query.new_zeros(*call.query.shape[:2], call.value.shape[2])

    def _table(self, call: AttentionCall, bias: Tensor) -> Tensor:
        """[heads, distances] of a bias [heads, tokens, tokens]."""
        if not call.causal:
            raise UnsupportedModel(
                f"{self._model_name}: {call.module} adds a bias to the scores of cross-attention; in self-attention it "
                "is supported"
            )
        positions = torch.arange(bias.shape[1], device=bias.device)
        distances = positions[:, None] - positions
        table = bias[:, -1].flip(-1)
        difference = (bias - table[:, distances.clamp(min=0)]).abs().masked_fill(distances < 0, 0)
        if difference.max() > _TOLERANCE * table.abs().max():
            raise UnsupportedModel(
                f"{self._model_name}: what {call.module} adds to the scores of attention depends on more than how far "
                "query and key are apart; supported are relative positions as T5 has them"
            )
        changing = (table != table[:, -1:]).any(0).nonzero()
        settled = int(changing[-1]) + 2 if len(changing) else 1
        return table[:, :settled].contiguous()
