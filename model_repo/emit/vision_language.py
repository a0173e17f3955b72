"""The Triton models of a vision-language model: those of other decoders, and the image encoder between them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from ..backends import interface
from ..runtime.contract import EngineSpec
from ..runtime.engine_files import ENCODER_FILES, ENCODER_ONLY
from ..runtime.manifest import Manifest
from .configs import EnsembleStep, ModelConfig
from .decoder import decoder, same, tensors
from .files import ENGINE, PILLOW, ModelFiles
from .requirements import engine_requirements
from .settings import ServeSettings

IMAGES_SUFFIX = "_images"
"""What follows a model's name in that of its image encoder."""


def vision_language(
    name: str, engine_dir: Path, manifest: Manifest, serve: ServeSettings
) -> list[ModelFiles]:
    """All models that serve the engine in `engine_dir` as `name`."""
    spec = manifest.engine
    assert spec is not None, "the caller read spec.image_encoder"
    encoder = spec.image_encoder
    assert encoder is not None, "as above"
    images = (interface.IMAGES,)
    pixels = (interface.pixel_values(encoder.pixel_shape),)
    embeds = (interface.prompt_embeds(encoder.hidden_size),)
    preprocess, generate, postprocess, ensemble, unary = decoder(name, engine_dir, manifest, serve)
    seen = tensors(images, optional=True)
    first, second, third = ensemble.config.steps
    steps = (
        EnsembleStep(first.model_name, {**first.inputs, **same(images)}, {**first.outputs, **same(pixels)}),
        EnsembleStep(f"{name}{IMAGES_SUFFIX}", same(pixels), same(embeds)),
        EnsembleStep(second.model_name, {**second.inputs, **same(embeds)}, second.outputs),
        third,
    )
    told = {"image_encoder": json.dumps(asdict(encoder))}
    only = {f"{ENGINE}/{path}" for path in manifest.details[ENCODER_ONLY]}
    return [
        replace(
            preprocess,
            config=replace(
                preprocess.config,
                inputs=(*preprocess.config.inputs, *seen),
                outputs=(*preprocess.config.outputs, *tensors(pixels)),
                parameters={**preprocess.config.parameters, **told},
            ),
            module="vision_preprocess",
            requirements=(*preprocess.requirements, PILLOW),
        ),
        _image_encoder(f"{name}{IMAGES_SUFFIX}", (pixels, embeds), engine_dir, manifest, spec, told),
        replace(
            generate,
            config=replace(
                generate.config, inputs=(*generate.config.inputs, *tensors(embeds, optional=True))
            ),
            files={path: file for path, file in generate.files.items() if path not in only},
        ),
        postprocess,
        replace(
            ensemble,
            config=replace(ensemble.config, inputs=(*ensemble.config.inputs, *seen), steps=steps),
        ),
        replace(unary, config=replace(unary.config, inputs=(*unary.config.inputs, *seen))),
    ]


def _image_encoder(
    name: str,
    fields: tuple[tuple[interface.Field, ...], tuple[interface.Field, ...]],
    engine_dir: Path,
    manifest: Manifest,
    spec: EngineSpec,
    told: dict[str, str],
) -> ModelFiles:
    """The image encoder, with its own copies of the files that it needs; `fields`: what it takes and gives."""
    pixels, embeds = fields
    paths: Iterable[str] = manifest.details[ENCODER_FILES]
    parameters = {**told, "threads": str(spec.threads)}
    if spec.plugin is not None:
        paths = (*paths, spec.plugin)
        parameters["plugin"] = spec.plugin
    return ModelFiles(
        ModelConfig(name, tensors(pixels), tensors(embeds), parameters=parameters),
        "image_encoder",
        {f"{interface.ENCODER_FOLDER}/{path}": engine_dir / path for path in paths},
        ("numpy>=1.26", *engine_requirements(manifest)),
    )
