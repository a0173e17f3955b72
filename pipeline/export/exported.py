"""What an export gives."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from model_repo.runtime.contract import KVSpec


@dataclass(frozen=True)
class ExportedGraph:
    """A graph that keeps to the contract; `kv` says what each layer of a decoder keeps (empty: an encoder).

    `features` names what the graph has beyond the plain contract. `max_length`: the longest sequence, in
    tokens, that the graph was made for. `encoder_inputs`: input names of an encoder's graph, in order.
    `encoder`: the graph that an encoder-decoder has beside its decoder's, and `encoder_positions`, the longest output
    of it. Of a vision-language model they are the graph of its image encoder, and the rows that an image becomes.
    """

    model: ir.Model
    kv: tuple[KVSpec, ...]
    features: tuple[str, ...]
    max_length: int
    encoder_inputs: tuple[str, ...] = ()
    encoder: ir.Model | None = None
    encoder_positions: int = 0
