"""The files of a compiled engine: engine.json and what it lists, checked before they are used."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from .contract import EngineSpec
from .errors import BadInput
from .manifest import Manifest
from .tokenizer import Tokenizer

ENGINE_MANIFEST = "engine.json"
ENCODER_FILES, ENCODER_ONLY = "encoder_files", "encoder_only"
"""Keys of the manifest's details: which of an engine's files an encoder needs, and which of them nothing else does."""
TOKENIZER = "tokenizer.json"
EXAMPLE = "examples.npz"
"""Inputs that an engine of named tensors was tried on: '<run>.<place of the input>' -> array."""


def verify_engine(manifest: Manifest, folder: Path) -> None:
    """Hashes every file of an engine; a repository serves an image encoder from a folder of its own.

    Raises BadInput naming the file that is missing or has changed since it was built.
    """
    sees = manifest.engine is not None and manifest.engine.image_encoder is not None
    manifest.verify_outputs(folder, may_lack=manifest.details.get(ENCODER_ONLY, ()) if sees else ())


class EngineFiles(NamedTuple):
    """What an engine's folder holds."""

    spec: EngineSpec
    tokenizer: Tokenizer | None

    @classmethod
    def read(cls, folder: Path, verify: bool = True) -> EngineFiles:
        """Reads engine.json in `folder`; with `verify`, hashes every file that it lists.

        Raises BadInput naming the file that is missing or has changed since it was built.
        """
        if not folder.is_dir():
            raise BadInput(f"no folder {folder}; build the engine first")
        manifest = Manifest.read(folder / ENGINE_MANIFEST)
        if manifest.engine is None:
            raise BadInput(f"{folder / ENGINE_MANIFEST} describes no engine; build it again")
        if verify:
            verify_engine(manifest, folder)
        tokenizer = folder / TOKENIZER
        return cls(manifest.engine, Tokenizer.load(tokenizer) if tokenizer.is_file() else None)
