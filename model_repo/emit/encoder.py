"""The Triton models of an encoder: preprocess, the engine with dynamic batching, and their ensemble."""

from __future__ import annotations

from pathlib import Path

from ..backends import interface
from ..runtime.errors import BadInput
from ..runtime.manifest import Manifest
from .configs import DynamicBatching, EnsembleStep, ModelConfig
from .decoder import onnxruntime_requirement, same, tensors
from .files import ENGINE, ModelFiles
from .settings import ServeSettings

MAX_BATCH = 64
DELAY_MICROSECONDS = 2000
"""Texts that arrive together leave tokenization one by one; the first waits so long for the rest."""


def encoder(name: str, engine_dir: Path, manifest: Manifest, serve: ServeSettings) -> list[ModelFiles]:
    """All models that serve the encoder in `engine_dir` as `name`."""
    spec = manifest.engine
    if spec is None or spec.hidden_size is None:
        raise BadInput(f"{engine_dir / 'engine.json'} does not say the embedding's size; build it again")
    engine_files = {f"{ENGINE}/{record.path}": engine_dir / record.path for record in manifest.outputs}
    engine_files[f"{ENGINE}/engine.json"] = engine_dir / "engine.json"
    output = (interface.embedding(spec.hidden_size),)
    preprocess, engine = f"{name}_preprocess", f"{name}_encoder"
    return [
        ModelFiles(
            ModelConfig(
                preprocess,
                tensors(interface.ENCODER_INPUTS),
                tensors(interface.TOKENIZED),
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
                tensors(interface.TOKENIZED, ragged=True),
                tensors(output),
                max_batch_size=MAX_BATCH,
                dynamic_batching=DynamicBatching(DELAY_MICROSECONDS),
                parameters={"ensemble": name},
            ),
            "encoder",
            engine_files,
            ("numpy>=1.26", onnxruntime_requirement(manifest)),
        ),
        ModelFiles(
            ModelConfig(
                name,
                tensors(interface.ENCODER_INPUTS),
                tensors(output),
                max_batch_size=MAX_BATCH,
                steps=(
                    EnsembleStep(preprocess, same(interface.ENCODER_INPUTS), same(interface.TOKENIZED)),
                    EnsembleStep(engine, same(interface.TOKENIZED), same(output)),
                ),
            )
        ),
    ]
