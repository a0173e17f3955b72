"""An encoder becomes one ONNX graph from token ids to pooled embeddings, or to the logits of its head.

Both the batch and the length are dynamic, and padding is masked; that a result does not depend on what it was batched
with is found by experiment (`independence.py`). Pooling and normalization are those of sentence-transformers
(https://www.sbert.net/docs/package_reference/sentence_transformer/modules.html).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel

from model_repo.runtime.contract import Head
from pipeline.sources.base import Pooling

from .attention import UnsupportedModel
from .dense_attention import use_dense_attention
from .exported import ExportedGraph
from .independence import alone, check_independence, position_limit, texts_for
from .sentence import SentenceHead
from .tidy import tidy
from .trace import trace

_EXAMPLE_LENGTHS = (7, 3, 5)
_SHORT = 16
"""Texts with fewer tokens fit any position table."""
_SPECIAL_TOKENS = ("pad", "bos", "eos", "cls", "sep", "mask", "unk", "decoder_start")


class SentenceEncoder(nn.Module):
    """`model`, and what makes an embedding of its last hidden states."""

    def __init__(
        self, model: PreTrainedModel, pooling: Pooling, normalize: bool, dense: Sequence[nn.Module] = ()
    ) -> None:
        super().__init__()
        self.model = model
        self.sentence = SentenceHead(pooling, dense, normalize)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """int64 [batch, length] each; attention_mask 1 for tokens, 0 for padding. Returns [batch, width]."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        pooled: Tensor = self.sentence(hidden, attention_mask)
        return pooled


class Classifier(nn.Module):
    """`model`, which has a head of its own, down to the logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """int64 [batch, length] each. Returns [batch, labels], or [batch, length, labels] where tokens are labelled."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **types
        ).logits
        return logits


def encoder_inputs(model: PreTrainedModel) -> tuple[str, ...]:
    """Inputs of the encoder's graph; token types only where the model tells more than one apart."""
    names = ("input_ids", "attention_mask")
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    if takes_types and getattr(model.config, "type_vocab_size", 0) > 1:
        return (*names, "token_type_ids")
    return names


def export_encoder(
    model: PreTrainedModel,
    pooling: Pooling,
    normalize: bool,
    max_length: int,
    opset: int,
    head: Head | None = None,
    dense: Sequence[nn.Module] = (),
) -> ExportedGraph:
    """Exports `model` (float32, eval): its last hidden states pooled, through `dense`, or the logits of its `head`.

    The model's attention is replaced in place; weights of the graph are the model's own memory. Raises
    UnsupportedModel when it is no encoder of token ids, when its position table is shorter than `max_length`, when a
    text's result would depend on padding or company, or when torch cannot export it.
    """
    head = head or Head()
    embeds = head.kind == "embedding"
    wrapper = SentenceEncoder(model, pooling, normalize, dense) if embeds else Classifier(model)
    _prepare(model, wrapper, max_length)
    inputs = encoder_inputs(model)
    batch, length = Dim("batch", min=1, max=1 << 16), Dim("length", min=1, max=max_length)
    graph: ir.Model = trace(
        wrapper,
        _example(len(inputs)),
        dynamic_shapes=({0: batch, 1: length},) * len(inputs),
        input_names=inputs,
        output_names=(head.output,),
        opset=opset,
    )
    tidy(graph, model)
    return ExportedGraph(graph, kv=(), features=(), max_length=max_length, encoder_inputs=inputs)


def _prepare(model: PreTrainedModel, wrapper: nn.Module, max_length: int) -> None:
    """Puts dense attention in, and makes sure that the results stay and are each text's own."""
    if "input_ids" not in inspect.signature(model.forward).parameters:
        raise UnsupportedModel(
            f"{type(model).__name__} takes no input_ids; encoders of text (of the BERT kind) are supported"
        )
    config = model.config
    special = [
        token
        for name in _SPECIAL_TOKENS
        if isinstance(token := getattr(config, f"{name}_token_id", None), int)
    ]
    texts = texts_for(config.vocab_size, special, max_length)
    try:
        expected = alone(wrapper, texts)
    except UnsupportedModel:
        _check_positions(model, wrapper, texts, max_length)  # says better what is wrong, if that is it
        raise
    _check_positions(model, wrapper, texts, max_length)
    use_dense_attention(model)
    check_independence(model, wrapper, texts, expected, max_length)


def _check_positions(
    model: PreTrainedModel, wrapper: nn.Module, texts: Sequence[Tensor], max_length: int
) -> None:
    """Raises UnsupportedModel when texts of `max_length` tokens do not fit the model's position table."""
    limit = position_limit(model, wrapper, [text for text in texts if len(text) < _SHORT])
    if limit is not None and max_length > limit:
        raise UnsupportedModel(
            f"the position table of {type(model).__name__} holds {limit} tokens, fewer than the {max_length} asked "
            f"for; give --max-length {limit}"
        )


def _example(num_inputs: int) -> tuple[Any, ...]:
    """Three sentences of different lengths, padded; ids, mask and, as third, token types."""
    lengths = torch.tensor(_EXAMPLE_LENGTHS)
    columns = torch.arange(int(lengths.max()))
    mask = (columns[None, :] < lengths[:, None]).to(torch.int64)
    return ((columns[None, :] + 2) * mask, mask, torch.zeros_like(mask))[:num_inputs]
