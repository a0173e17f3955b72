"""The part of the export that holds the torch module; runs in a process of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model_repo.runtime.contract import ImageEncoderSpec
from pipeline.recipe import Recipe
from pipeline.sources.encoder_decoder import ENCODER_GRAPH
from pipeline.workspace import WEIGHTS

from .context import ModelFacts, parity_inputs

if TYPE_CHECKING:
    from pipeline.sources import Source


def export_module(recipe: dict[str, Any], graph: str, expected: str) -> dict[str, Any]:
    """Writes the exported graph to `graph`, and what the torch module gives on the parity inputs to `expected`.

    `recipe` as `Recipe.to_dict` gives it; `expected` is an .npz of float32 arrays. Gives `facts`
    (`ModelFacts.to_dict`) and `weights`, the paths of the graph's weight files. Raises what `export` raises.
    """
    from pipeline.export import export
    from pipeline.graph import save_graph
    from pipeline.parity.cross import encoder_beside
    from pipeline.parity.reference import run_module
    from pipeline.sources import open_source

    settings = Recipe.from_dict(recipe)
    weights = Path(graph).parent / WEIGHTS
    source = open_source(settings.source.model, settings.source).with_weights_in(weights)
    max_length = settings.export.resolved_max_length(source.max_length)
    images = _image_encoder(source)
    inputs = parity_inputs(source.tokenizer_file, source.vocab_size, max_length, images)
    np.savez(expected, *run_module(source, inputs, images))
    exported = export(source, settings.export, images.pixel_shape if images else None)
    last = exported.model.graph.outputs[0].shape
    embeds = source.kind == "encoder" and source.head.kind == "embedding"
    hidden = last[-1] if last is not None and embeds else None
    facts = ModelFacts(
        name=source.name,
        kind=source.kind,
        vocab_size=source.vocab_size,
        max_length=exported.max_length,
        end_token_ids=source.end_token_ids,
        features=exported.features,
        kv=exported.kv,
        encoder_inputs=exported.encoder_inputs,
        hidden_size=hidden if isinstance(hidden, int) else None,
        head=source.head,
        image_encoder=images,
    )
    saved = save_graph(exported.model, Path(graph))
    stored = set(saved.weights)
    if source.encoder is not None:
        facts = replace(facts, encoder=replace(source.encoder, max_positions=exported.encoder_positions))
    if exported.encoder is not None:
        stored.update(save_graph(exported.encoder, encoder_beside(Path(graph))).weights)
    return {"facts": facts.to_dict(), "weights": sorted(map(str, stored))}


def _image_encoder(source: Source) -> ImageEncoderSpec | None:
    """The image encoder of a vision-language model, whose rows are counted by running it; None for other models.

    Raises BadInput when its images cannot be prepared.
    """
    if source.placeholder is None:
        return None
    from pipeline.export.vision_language import image_rows
    from pipeline.sources.vision_language import image_preprocessing

    steps = image_preprocessing(source.folder, bool(getattr(source, "trust_remote_code", False)))
    spec = ImageEncoderSpec(ENCODER_GRAPH, steps, source.placeholder.text, source.placeholder.token_id, 0, 0)
    rows, hidden_size = image_rows(source.load(), spec.pixel_shape)
    return replace(spec, rows=rows, hidden_size=hidden_size)
