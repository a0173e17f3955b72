"""A sentence encoder becomes one ONNX graph from token ids to pooled, normalized embeddings.

Both the batch and the length are dynamic, and padding is masked, so an embedding does not depend on what it
was batched with. Pooling and normalization are those of sentence-transformers
(https://www.sbert.net/docs/package_reference/sentence_transformer/modules.html).
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import PreTrainedModel

from .attention import UnsupportedModel
from .dense_attention import DENSE
from .exported import ExportedGraph
from .tidy import tidy
from .trace import trace

OUTPUT = "embedding"
Pooling = Literal["mean", "cls"]

_EXAMPLE_LENGTHS = (7, 3, 5)


class SentenceEncoder(nn.Module):
    """`model`, with pooling over its last hidden states: `mean` over the tokens that are not padding, or
    `cls`, the first token's; then, with `normalize`, division by the L2 norm."""

    def __init__(self, model: PreTrainedModel, pooling: Pooling, normalize: bool) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.normalize = normalize

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """int64 [batch, length] each; attention_mask 1 for tokens, 0 for padding. Returns [batch, hidden]."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
        if self.pooling == "cls":
            pooled: Tensor = hidden[:, 0]
        else:
            weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
        if self.normalize:
            pooled = pooled / torch.linalg.vector_norm(pooled, dim=1, keepdim=True).clamp(min=1e-12)
        return pooled


def encoder_inputs(model: PreTrainedModel) -> tuple[str, ...]:
    """Inputs of the encoder's graph; token types only where the model tells more than one apart."""
    names = ("input_ids", "attention_mask")
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
    if takes_types and getattr(model.config, "type_vocab_size", 0) > 1:
        return (*names, "token_type_ids")
    return names


def export_encoder(
    model: PreTrainedModel, pooling: Pooling, normalize: bool, max_length: int, opset: int
) -> ExportedGraph:
    """Exports `model` (float32, eval), whose last hidden states are pooled. Raises UnsupportedModel.

    The model's attention is replaced in place; weights of the graph are the model's own memory.
    """
    if model._can_set_attn_implementation():
        model.set_attn_implementation(DENSE)
    if model.config._attn_implementation != DENSE:
        raise UnsupportedModel(
            f"{type(model).__name__} does not use transformers' attention interface; encoders of the BERT "
            "kind do"
        )
    inputs = encoder_inputs(model)
    batch, length = Dim("batch", min=1, max=1 << 16), Dim("length", min=1, max=max_length)
    graph: ir.Model = trace(
        SentenceEncoder(model, pooling, normalize),
        _example(len(inputs)),
        dynamic_shapes=({0: batch, 1: length},) * len(inputs),
        input_names=inputs,
        output_names=(OUTPUT,),
        opset=opset,
    )
    tidy(graph, model)
    return ExportedGraph(graph, kv=(), features=(), max_length=max_length, encoder_inputs=inputs)


def _example(num_inputs: int) -> tuple[Any, ...]:
    """Three sentences of different lengths, padded; ids, mask and, as third, token types."""
    lengths = torch.tensor(_EXAMPLE_LENGTHS)
    columns = torch.arange(int(lengths.max()))
    mask = (columns[None, :] < lengths[:, None]).to(torch.int64)
    return ((columns[None, :] + 2) * mask, mask, torch.zeros_like(mask))[:num_inputs]
