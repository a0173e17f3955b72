"""The Triton models of an encoder: preprocess, the engine with dynamic batching, for heads the labels' step, and
their ensemble."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..backends import interface
from ..runtime.contract import EngineSpec
from ..runtime.errors import BadInput
from ..runtime.manifest import Manifest
from .configs import DynamicBatching, EnsembleStep, ModelConfig, Tensor
from .decoder import same, tensors
from .files import ENGINE, ModelFiles
from .requirements import engine_gpus, engine_requirements
from .settings import ServeSettings, capture_parameters

MAX_BATCH = 64
DELAY_MICROSECONDS = 2000
"""Texts that arrive together leave tokenization one by one; the first waits so long for the rest."""

LABEL_FILE = "labels.txt"
"""The names of `scores`, a line each, where Triton looks for them."""

Fields = tuple[interface.Field, ...]


def encoder(name: str, engine_dir: Path, manifest: Manifest, serve: ServeSettings) -> list[ModelFiles]:
    """All models that serve the encoder in `engine_dir` as `name`."""
    spec = manifest.engine
    assert spec is not None, "the caller read spec.kind"
    engine_files = {f"{ENGINE}/{record.path}": engine_dir / record.path for record in manifest.outputs}
    engine_files[f"{ENGINE}/engine.json"] = engine_dir / "engine.json"
    read = _engine_inputs(spec)
    offsets = (interface.OFFSETS,) if _per_token(spec) else ()
    given = _engine_output(spec, engine_dir)
    preprocess, engine = f"{name}_preprocess", f"{name}_encoder"
    inputs: Fields = interface.ENCODER_INPUTS
    asked = tensors(inputs)
    if spec.head.takes_pairs:
        inputs = (*inputs, interface.TEXT_PAIR)
        asked = (*asked, *tensors((interface.TEXT_PAIR,), optional=True))
    steps = [
        EnsembleStep(preprocess, same(inputs), same(read, offsets)),
        EnsembleStep(engine, same(read), same(given)),
    ]
    models = [
        ModelFiles(
            ModelConfig(
                preprocess,
                asked,
                tensors((*read, *offsets)),
                max_batch_size=MAX_BATCH,
                dynamic_batching=DynamicBatching(),
                parameters={"max_length": str(spec.max_length)},
            ),
            "encoder_preprocess",
            {"tokenizer.json": engine_dir / "tokenizer.json"},
            ("numpy>=1.26", "tokenizers>=0.20"),
        ),
        ModelFiles(
            ModelConfig(
                engine,
                tensors(read, ragged=True),
                tensors(given),
                max_batch_size=MAX_BATCH,
                dynamic_batching=DynamicBatching(DELAY_MICROSECONDS),
                gpus=engine_gpus(manifest),
                parameters={"ensemble": name, **capture_parameters(serve)},
            ),
            "encoder",
            engine_files,
            ("numpy>=1.26", *engine_requirements(manifest)),
        ),
    ]
    outputs = given
    if spec.head.kind != "embedding":
        outputs = interface.label_outputs(len(spec.head.labels), _per_token(spec))
        needed = (*given, *offsets, *(interface.ENCODER_INPUTS if _per_token(spec) else ()))
        models.append(_labels(f"{name}_postprocess", spec, needed, tensors(outputs)))
        steps.append(EnsembleStep(f"{name}_postprocess", same(needed), same(outputs)))
    named = tuple(
        replace(tensor, label_file=LABEL_FILE) if tensor.name == "scores" else tensor
        for tensor in tensors(outputs)
    )
    beside = {tensor.label_file: label_lines(spec.head.labels) for tensor in named if tensor.label_file}
    config = ModelConfig(name, asked, named, max_batch_size=MAX_BATCH, steps=tuple(steps))
    return [*models, ModelFiles(config, beside=beside)]


def label_lines(labels: Sequence[str]) -> str:
    """The text of LABEL_FILE."""
    return "".join(f"{' '.join(label.split())}\n" for label in labels)


def _labels(name: str, spec: EngineSpec, needed: Fields, outputs: tuple[Tensor, ...]) -> ModelFiles:
    """The step from logits to labels."""
    return ModelFiles(
        ModelConfig(
            name,
            tensors(needed, ragged=_per_token(spec)),
            outputs,
            max_batch_size=MAX_BATCH,
            dynamic_batching=DynamicBatching(),
            parameters={"head": json.dumps(asdict(spec.head))},
        ),
        "labels_postprocess",
        requirements=("numpy>=1.26",),
    )


def _per_token(spec: EngineSpec) -> bool:
    return spec.head.kind == "token_classification"


def _engine_inputs(spec: EngineSpec) -> Fields:
    """Token types go along where a text can have a second one, and the model tells them apart."""
    types = interface.TOKEN_TYPES
    told_apart = spec.head.takes_pairs and types.name in spec.encoder_inputs
    return (*interface.TOKENIZED, types) if told_apart else interface.TOKENIZED


def _engine_output(spec: EngineSpec, engine_dir: Path) -> Fields:
    """Raises BadInput when the manifest lacks the size."""
    if spec.head.kind != "embedding":
        return (interface.logits(len(spec.head.labels), _per_token(spec)),)
    if spec.hidden_size is None:
        raise BadInput(f"{engine_dir / 'engine.json'} does not say the embedding's size; build it again")
    return (interface.embedding(spec.hidden_size),)
