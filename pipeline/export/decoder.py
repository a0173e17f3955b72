"""A causal language model becomes one packed ONNX graph with one `slipway::PagedAttention` a layer."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from transformers import PreTrainedModel

from model_repo.runtime.contract import (
    LOGITS,
    TensorSpec,
    decoder_inputs,
    key_cache_out,
    value_cache_out,
)

from .attention import UnsupportedModel
from .example import example_step
from .experts import prepare_experts
from .exported import ExportedGraph
from .packed import PackedDecoder
from .packing import check_packing
from .probe import probe
from .rotary import freeze_rotary
from .tidy import tidy
from .trace import trace

POOL_DTYPE = "float32"


def export_decoder(model: PreTrainedModel, max_length: int, opset: int) -> ExportedGraph:
    """Exports `model` (float32, eval) for sequences of up to `max_length` tokens.

    The model is prepared in place: its attention goes through the paged operator, and rotary scalings that
    depend on the length are frozen. Weights of the graph are the model's own memory. Raises UnsupportedModel
    when the packed graph cannot express the model.
    """
    prepare_experts(model)
    layers = probe(model)
    freeze_rotary(model, max_length)
    check_packing(model)
    kv = tuple(layer.kv(POOL_DTYPE) for layer in layers)
    inputs, outputs = decoder_inputs(kv), pool_outputs(len(kv))
    step = example_step(layers)
    graph = trace(
        PackedDecoder(model, layers),
        step.arguments,
        dynamic_shapes=step.dynamic_shapes,
        input_names=[spec.name for spec in inputs],
        output_names=outputs,
        opset=opset,
    )
    tidy(graph, model)
    check_contract(graph, inputs, outputs, type(model).__name__)
    return ExportedGraph(graph, kv, features=(), max_length=max_length)


def pool_outputs(num_layers: int) -> list[str]:
    """Output names in the order of `PackedDecoder.forward`."""
    pools = [name(layer) for layer in range(num_layers) for name in (key_cache_out, value_cache_out)]
    return [LOGITS.name, *pools]


def check_contract(
    graph: ir.Model, inputs: Sequence[TensorSpec], outputs: Sequence[str], model_name: str
) -> None:
    """The graph has exactly the contract's inputs and outputs. Raises UnsupportedModel."""
    found = [
        (value.name, str(value.dtype), tuple(map(str, value.shape or ()))) for value in graph.graph.inputs
    ]
    wanted = [(spec.name, _ONNX_DTYPE[spec.dtype], tuple(map(str, spec.shape))) for spec in inputs]
    if found != wanted:
        different = [pair for pair in zip(wanted, found, strict=False) if pair[0] != pair[1]]
        raise UnsupportedModel(f"{model_name}: exported inputs differ from the contract: {different}")
    if [value.name for value in graph.graph.outputs] != list(outputs):
        raise UnsupportedModel(f"{model_name}: exported outputs are {[v.name for v in graph.graph.outputs]}")


_ONNX_DTYPE = {"int32": "INT32", "float32": "FLOAT"}
