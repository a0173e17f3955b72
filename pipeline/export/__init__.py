"""Export: from a torch module to an ONNX graph that keeps to the contract.

`export` is the stage. Decoders become one packed graph (`decoder.py`), sentence encoders one padded graph
(`encoder.py`), encoder-decoders and vision-language models two (`encoder_decoder.py`, `vision_language.py`); nothing
here knows a model family by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.recipe import ExportRecipe
    from pipeline.sources import Source

    from .exported import ExportedGraph

__all__ = ["export"]


def export(
    source: Source, recipe: ExportRecipe, pixel_shape: tuple[int, int, int] | None = None
) -> ExportedGraph:
    """Loads the source's model and exports it. `pixel_shape`: channels, height and width of the images that a
    vision-language model takes.

    Raises BadInput when `recipe.max_length` is beyond the model's limit, when the checkpoint cannot be
    loaded, and (UnsupportedModel) when the graph cannot express the model.
    """
    max_length = recipe.resolved_max_length(source.max_length)
    model = source.load()
    # The exporters import torch's exporter and onnx, which takes seconds: a bad source is refused before.
    if source.encoder is not None:
        from .encoder_decoder import export_encoder_decoder

        encoder = source.encoder
        return export_encoder_decoder(model, max_length, recipe.opset, encoder.input, encoder.max_positions)
    if pixel_shape is not None:
        from .vision_language import export_vision_language

        return export_vision_language(model, max_length, recipe.opset, pixel_shape)
    if source.kind == "decoder":
        from .decoder import export_decoder

        return export_decoder(model, max_length, recipe.opset)
    from .encoder import export_encoder
    from .sentence import dense_modules

    return export_encoder(
        model,
        source.pooling,
        source.normalize,
        max_length,
        recipe.opset,
        source.head,
        dense_modules(source.dense),
    )
