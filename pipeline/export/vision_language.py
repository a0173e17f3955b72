"""A vision-language model becomes two graphs: its image encoder, and its text model on packed steps.

The text model's graph is that of any decoder, with two inputs more: rows that take the place of tokens' own embeddings,
and which token gets which. The image encoder is the vision tower and the projector, as the model's own
`get_image_features` joins them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from model_repo.runtime.contract import decoder_inputs
from model_repo.runtime.errors import BadInput
from model_repo.runtime.prompt_embeds import EMBED_OUTPUT, PIXELS

from .attention import UnsupportedModel
from .decoder import POOL_DTYPE, check_contract, pool_outputs
from .example import example_step, with_embeds
from .experts import prepare_experts
from .exported import ExportedGraph
from .packed_embeds import PackedEmbedDecoder
from .packing import check_packing
from .probe import probe
from .rotary import freeze_rotary
from .tidy import tidy
from .trace import trace


class ImageEncoder(nn.Module):
    """`model`'s vision tower and projector."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Rows float32 [rows, hidden] of one image's pixel_values float32 [1, channels, height, width]."""
        features: Any = self.model.get_image_features
        (rows,) = features(pixel_values=pixel_values).pooler_output
        found: Tensor = rows
        return found


def image_rows(model: PreTrainedModel, pixel_shape: tuple[int, int, int]) -> tuple[int, int]:
    """How many rows an image becomes, and their size; `pixel_shape`: channels, height, width.

    Raises BadInput when the model does not take images of this shape, UnsupportedModel when it gives something else.
    """
    name = type(model).__name__
    try:
        with torch.no_grad():
            rows = ImageEncoder(model)(torch.zeros(1, *pixel_shape))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise BadInput(
            f"the image processor gives pixel_values of {list(pixel_shape)}, which {name} does not take: {error}; the "
            "checkpoint's image processor and config.json do not belong together"
        ) from error
    embeddings: Any = model.get_input_embeddings()
    size = int(embeddings.weight.shape[1])
    if rows.dim() != 2 or rows.shape[1] != size:
        raise UnsupportedModel(
            f"{name} makes an image {list(rows.shape)}; rows of {size}, the size of a token's embedding, are supported"
        )
    return rows.shape[0], size


def export_vision_language(
    model: PreTrainedModel, max_length: int, opset: int, pixel_shape: tuple[int, int, int]
) -> ExportedGraph:
    """Exports `model` (float32, eval) for sequences of up to `max_length` tokens, rows of images included.

    `pixel_shape`: channels, height and width of all images. The model is prepared in place; weights of the graphs are
    its own memory. Raises BadInput as `image_rows` does, and when an image does not fit; UnsupportedModel when the
    graphs cannot express the model.
    """
    rows, size = image_rows(model, pixel_shape)
    if rows + 1 >= max_length:
        raise BadInput(
            f"an image takes {rows} tokens of a prompt, and the longest sequence has {max_length}; raise max_length"
        )
    # Before the text model is put under paged attention, which reaches the vision tower as well.
    encoder = trace(
        ImageEncoder(model),
        (torch.zeros(1, *pixel_shape),),
        dynamic_shapes=({},),
        input_names=[PIXELS],
        output_names=[EMBED_OUTPUT],
        opset=opset,
    )
    tidy(encoder, model)
    prepare_experts(model)
    layers = probe(model)
    freeze_rotary(model, max_length)
    check_packing(model)
    kv = tuple(layer.kv(POOL_DTYPE) for layer in layers)
    inputs, outputs = decoder_inputs(kv, size), pool_outputs(len(kv))
    step = with_embeds(example_step(layers), size)
    decoder = trace(
        PackedEmbedDecoder(model, layers),
        step.arguments,
        dynamic_shapes=step.dynamic_shapes,
        input_names=[spec.name for spec in inputs],
        output_names=outputs,
        opset=opset,
    )
    tidy(decoder, model)
    check_contract(decoder, inputs, outputs, type(model).__name__)
    return ExportedGraph(
        decoder, kv, features=(), max_length=max_length, encoder=encoder, encoder_positions=rows
    )
