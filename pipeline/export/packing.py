"""The packing check: outside attention, every row must depend on its own token and position only.

In a packed step the rows of several sequences lie side by side, so a layer that looks at its neighbours
(a convolution, a recurrence, a token shift, positions that the model counts itself) would mix requests.
Attention is replaced by a function of each row alone, the rows are shuffled, and everything is compared.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .attention import AttentionCall, UnsupportedModel, answering
from .head import packed_logits

_POSITIONS = (0, 1, 2, 0, 1, 31, 0)
_ORDER = (3, 0, 6, 1, 5, 2, 4)
RELATIVE_TOLERANCE = 1e-3
"""Of the largest value: float32 noise of another row order is a thousand times smaller."""


def check_packing(model: PreTrainedModel, encoder_hidden: Tensor | None = None) -> None:
    """Raises UnsupportedModel when a row of the step depends on other rows outside attention.

    `encoder_hidden`: what the encoder of an encoder-decoder gave, see `packed_logits`.
    """
    device = next(model.parameters()).device
    order = torch.tensor(_ORDER, device=device)
    plain = _run(model, torch.arange(len(_ORDER), device=device), encoder_hidden)
    shuffled = _run(model, order, encoder_hidden)
    for number, (expected, found) in enumerate(zip(plain, shuffled, strict=True)):
        expected = expected[order].float()
        difference = (expected - found.float()).abs().max()
        if difference > RELATIVE_TOLERANCE * expected.abs().max().clamp_min(1e-6):
            part = "logit row" if number == 0 else ("query", "key", "value")[(number - 1) % 3]
            where = "" if number == 0 else f" of attention call {(number - 1) // 3}"
            raise UnsupportedModel(
                f"{type(model).__name__}: the {part}{where} of a token depends on other tokens outside "
                "attention (a convolution, a recurrence, or positions that the model counts itself), so "
                "sequences cannot be packed"
            )


def _run(model: PreTrainedModel, order: Tensor, encoder_hidden: Tensor | None) -> list[Tensor]:
    """Logits, then query, key and value of every attention call, with the rows in `order`."""
    device = order.device
    ids = torch.arange(4, 4 + len(_ORDER), dtype=torch.int32, device=device)[order]
    positions = torch.tensor(_POSITIONS, dtype=torch.int32, device=device)[order]
    rows = torch.arange(len(_ORDER), dtype=torch.int32, device=device)
    recorder = _RowLocal()
    with answering(recorder), torch.no_grad():
        logits = packed_logits(model, ids, positions, rows, encoder_hidden=encoder_hidden)
    return [logits, *recorder.seen]


class _RowLocal:
    """Attention of every token to itself alone; keeps what it was given."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def attend(self, call: AttentionCall) -> Tensor:
        """The token's own value; of cross-attention, whose keys and values are no token's, its own query."""
        if not call.causal:
            self.seen += [call.query] * 3
            return call.query[..., : call.value.shape[2]]
        self.seen += [call.query, call.key, call.value]
        return call.value.repeat_interleave(call.query.shape[1] // call.value.shape[1], dim=1)
