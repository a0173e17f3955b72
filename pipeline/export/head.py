"""Running a decoder on a packed step, with the rows of the language head chosen just before it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .attention import UnsupportedModel
from .positions import positions_given


def packed_logits(
    model: PreTrainedModel,
    input_ids: Tensor,
    position_ids: Tensor | None,
    logits_indices: Tensor,
    attention_mask: Tensor | None = None,
    encoder_hidden: Tensor | None = None,
) -> Tensor:
    """Logits [selected, vocab] of rows `logits_indices` [selected] of the packed tokens `input_ids` [tokens].

    `encoder_hidden` [1, positions, hidden]: what an encoder-decoder's encoder gave; its decoder alone is run.
    The rows are chosen in a hook before the head, so what the model does to its logits afterwards (scaling,
    softcap) stays in place. Raises UnsupportedModel when the head is not called exactly once.
    """
    prefix = "" if encoder_hidden is None else "decoder_"
    arguments: dict[str, Any] = {"use_cache": False, f"{prefix}input_ids": input_ids[None]}
    if encoder_hidden is not None:
        # Tables of positions may be indexed (weight[positions]); ONNX's GatherND takes no int32.
        position_ids = None if position_ids is None else position_ids.long()
        arguments["encoder_outputs"] = BaseModelOutput(last_hidden_state=encoder_hidden)
    takes_positions = f"{prefix}position_ids" in inspect.signature(model.forward).parameters
    if position_ids is not None and takes_positions:
        arguments[f"{prefix}position_ids"] = position_ids[None]
    if attention_mask is not None:
        arguments[f"{prefix}attention_mask"] = attention_mask[None]
    calls = 0

    def choose_rows(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal calls
        calls += 1
        return (inputs[0].index_select(-2, logits_indices), *inputs[1:])

    head: torch.nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None:
        raise UnsupportedModel(
            f"{type(model).__name__} has no language head; a causal language model is needed"
        )
    hook = head.register_forward_pre_hook(choose_rows)
    counted = position_ids if encoder_hidden is not None and not takes_positions else None
    try:
        with positions_given(model, counted):
            logits: Tensor = model(**arguments).logits[0]
    finally:
        hook.remove()
    if calls != 1:
        raise UnsupportedModel(
            f"{type(model).__name__} calls its language head {calls} times; once is supported"
        )
    return logits
