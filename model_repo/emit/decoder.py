"""The Triton models of a decoder: preprocess, generate, postprocess, their ensemble and its unary form."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from ..backends import interface
from ..runtime.contract import EncoderSpec
from ..runtime.manifest import Manifest
from .configs import EnsembleStep, ModelConfig, Tensor
from .files import ENGINE, ModelFiles
from .requirements import engine_gpus, engine_requirements
from .settings import ServeSettings, capture_parameters


def tensors(
    fields: tuple[interface.Field, ...], optional: bool = False, ragged: bool = False
) -> tuple[Tensor, ...]:
    """Config tensors of a table of the interface."""
    return tuple(Tensor(f.name, f.kind, f.dims, optional, ragged) for f in fields)


def same(*tables: tuple[interface.Field, ...]) -> dict[str, str]:
    """An ensemble step's map where the model's names are the ensemble's."""
    return {field.name: field.name for table in tables for field in table}


def decoder(name: str, engine_dir: Path, manifest: Manifest, serve: ServeSettings) -> list[ModelFiles]:
    """All models that serve the decoder in `engine_dir` as `name`."""
    spec = manifest.engine
    assert spec is not None, "the caller read spec.kind"
    engine_files = {f"{ENGINE}/{record.path}": engine_dir / record.path for record in manifest.outputs}
    engine_files[f"{ENGINE}/engine.json"] = engine_dir / "engine.json"
    text_files = {
        file: engine_dir / file
        for file in ("tokenizer.json", "chat_template.jinja")
        if (engine_dir / file).is_file()
    }
    preprocess, generate, postprocess = f"{name}_preprocess", f"{name}_generate", f"{name}_postprocess"
    asked, handed_on = interface.DECODER_INPUTS, interface.PREPROCESSED
    parameters = {
        "max_length": str(spec.max_length),
        "default_max_tokens": str(serve.default_max_tokens),
        "request_timeout_seconds": str(serve.request_timeout_seconds),
    }
    if spec.encoder is not None:
        parameters["encoder"] = json.dumps(asdict(spec.encoder))
        handed_on = (*handed_on, _encoder_field(spec.encoder))
        asked = tuple(field for field in asked if field.name != "messages")
        asked = (*asked, interface.BEGINNING if spec.encoder.log_mel is None else interface.AUDIO)
    inputs = tensors(asked, optional=True)
    outputs = tensors(interface.DECODER_OUTPUTS)
    return [
        ModelFiles(
            ModelConfig(
                preprocess,
                inputs,
                tensors(handed_on),
                parameters=parameters,
            ),
            "preprocess",
            text_files,
            ("numpy>=1.26", "tokenizers>=0.20", "jinja2>=3.1"),
        ),
        ModelFiles(
            ModelConfig(
                generate,
                tensors(handed_on),
                tensors(interface.GENERATED),
                decoupled=True,
                gpus=engine_gpus(manifest),
                parameters={
                    "max_queue": str(serve.max_queue),
                    "ensemble": name,
                    "postprocess": postprocess,
                    **capture_parameters(serve),
                },
            ),
            "generate",
            engine_files,
            ("numpy>=1.26", "tokenizers>=0.20", *engine_requirements(manifest)),
        ),
        ModelFiles(
            ModelConfig(
                postprocess,
                tensors(interface.GENERATED),
                (*outputs, *tensors((interface.GONE,))),
            ),
            "postprocess",
            requirements=("numpy>=1.26",),
        ),
        ModelFiles(
            ModelConfig(
                name,
                inputs,
                outputs,
                decoupled=True,
                steps=(
                    EnsembleStep(preprocess, same(asked), same(handed_on)),
                    EnsembleStep(generate, same(handed_on), same(interface.GENERATED)),
                    EnsembleStep(postprocess, same(interface.GENERATED), same(interface.DECODER_OUTPUTS)),
                ),
            )
        ),
        ModelFiles(
            ModelConfig(f"{name}_unary", inputs, outputs, parameters={"ensemble": name}),
            "unary",
            requirements=("numpy>=1.26",),
        ),
    ]


def _encoder_field(encoder: EncoderSpec) -> interface.Field:
    """What the encoder takes, as preprocessing hands it on: without the first axis, which is 1."""
    dims = tuple(size if isinstance(size, int) else -1 for size in encoder.input.shape[1:])
    return interface.encoder_input("FP32" if encoder.input.dtype == "float32" else "INT64", dims)
