"""emit(): one Triton model repository for one or several engines."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from ..runtime.errors import BadInput
from ..runtime.manifest import Manifest
from .configs import checked_model_name
from .decoder import decoder
from .encoder import encoder
from .files import ModelFiles
from .images import images
from .settings import ServeSettings
from .tensors import tensors
from .vision_language import vision_language

ENGINE_MANIFEST = "engine.json"


def emit(engine_dirs: Sequence[tuple[str, Path]], destination: Path, serve: ServeSettings) -> None:
    """Writes the model repository of `engine_dirs`, pairs of served name and engine folder, to `destination`.

    The repository is a true copy: it needs nothing outside itself. It appears whole, by a rename, or not at
    all. Raises BadInput when `destination` exists, an engine is missing or changed, or names clash.
    """
    if not engine_dirs:
        raise BadInput("no engine to emit; name at least one built model")
    if destination.exists():
        raise BadInput(f"{destination} exists; a repository is written to a new folder")
    models: list[ModelFiles] = []
    for name, engine_dir in engine_dirs:
        models.extend(_models(checked_model_name(name), engine_dir, serve))
    names = [model.config.name for model in models]
    clashes = sorted({name for name in names if names.count(name) > 1})
    if clashes:
        raise BadInput(
            f"two models of the repository would be called {', '.join(clashes)}; give one another name"
        )
    staged = destination.with_name(f".staging-{destination.name}")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        staged.mkdir(parents=True)
        for model in models:
            model.write(staged)
        staged.rename(destination)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def _models(name: str, engine_dir: Path, serve: ServeSettings) -> list[ModelFiles]:
    manifest = Manifest.read(engine_dir / ENGINE_MANIFEST)
    manifest.verify_outputs(engine_dir)
    if manifest.engine is None:
        raise BadInput(f"{engine_dir / ENGINE_MANIFEST} describes no engine; build it again")
    kinds = {"decoder": decoder, "encoder": encoder, "tensors": tensors}
    models = images if manifest.engine.images is not None else kinds[manifest.engine.kind]
    if manifest.engine.image_encoder is not None:
        models = vision_language
    return models(name, engine_dir, manifest, serve)
