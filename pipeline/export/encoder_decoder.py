"""An encoder-decoder becomes two graphs: its encoder down to cross keys and values, and its decoder on packed steps.

The decoder's graph is that of any decoder, with a second KV group for cross-attention; nothing here knows a model
family by name.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from model_repo.runtime.contract import CROSS, decoder_inputs
from model_repo.runtime.cross_attention import POSITIONS, cross_key, cross_value
from model_repo.runtime.tensor_spec import TensorSpec

from .attention import UnsupportedModel
from .cross_encoder import CrossEncoder, dynamic_axes, encode, example_input
from .decoder import POOL_DTYPE, check_contract, pool_outputs
from .example import example_step
from .experts import prepare_experts
from .exported import ExportedGraph
from .packed import PackedCrossDecoder
from .packing import check_packing
from .probe import probe
from .rotary import freeze_rotary
from .tidy import tidy
from .trace import trace


def export_encoder_decoder(
    model: PreTrainedModel,
    max_length: int,
    opset: int,
    encoder_input: TensorSpec,
    max_positions: int,
) -> ExportedGraph:
    """Exports `model` (float32, eval) for completions of up to `max_length` tokens.

    `encoder_input`: what the encoder takes, see `EncoderSpec`; `max_positions`: its longest input, where a size of it
    is free. The model is prepared in place; weights of the graphs are its own memory. Raises UnsupportedModel when the
    graphs cannot express the model.
    """
    prepare_experts(model)
    source = example_input(encoder_input, model.config.get_text_config().vocab_size)
    with torch.no_grad():
        hidden = encode(model, encoder_input.name, source)
    layers = probe(model, hidden, max_length)
    freeze_rotary(model, max_length)
    check_packing(model, hidden)
    kv = tuple(layer.kv(POOL_DTYPE) for layer in layers)
    inputs, outputs = decoder_inputs(kv), pool_outputs(len(kv))
    step = example_step(layers)
    decoder = trace(
        PackedCrossDecoder(model, layers, hidden),
        step.arguments,
        dynamic_shapes=step.dynamic_shapes,
        input_names=[spec.name for spec in inputs],
        output_names=outputs,
        opset=opset,
    )
    tidy(decoder, model)
    check_contract(decoder, inputs, outputs, type(model).__name__)
    cross = [layer for layer, spec in enumerate(kv) if spec.group == CROSS]
    encoder = trace(
        CrossEncoder(model, layers, encoder_input.name),
        (source,),
        dynamic_shapes=(dynamic_axes(encoder_input, max_positions),),
        input_names=[encoder_input.name],
        output_names=[name(layer) for layer in cross for name in (cross_key, cross_value)],
        opset=opset,
    )
    tidy(encoder, model)
    free = POSITIONS in encoder_input.shape
    found = encoder.graph.outputs[0].shape
    if found is None or free == isinstance(found[1], int):
        raise UnsupportedModel(
            f"the encoder of {type(model).__name__} does not give one position for each of its input's, or as many "
            "for every input; supported are encoders that do either"
        )
    positions = max_positions if free else hidden.shape[1]
    return ExportedGraph(
        decoder, kv, features=(), max_length=max_length, encoder=encoder, encoder_positions=positions
    )
