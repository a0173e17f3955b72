"""Where models come from, one file a kind of source: what a MODEL may be, and who opens it.

Opening a source checks it and imports no torch; `Source.load` gives the model, in a process of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from model_repo.runtime.errors import BadInput

from . import demo, hub, minilm, module
from .base import Source
from .huggingface import open_folder

if TYPE_CHECKING:
    from pipeline.recipe import SourceRecipe

__all__ = ["FILES", "SOURCES", "Source", "open_source"]

SOURCES: Mapping[str, Callable[[SourceRecipe], Source]] = {
    demo.NAME: demo.open_demo,
    minilm.NAME: minilm.open_minilm,
}
"""Models that have a name. A folder of the same name is given as ./name."""


def _program(path: Path, recipe: SourceRecipe) -> Source:
    from .program import open_program

    return open_program(path, recipe)


def _graph(path: Path, recipe: SourceRecipe) -> Source:
    from .onnx_file import open_graph

    return open_graph(path, recipe)


FILES: Mapping[str, Callable[[Path, SourceRecipe], Source]] = {".pt2": _program, ".onnx": _graph}
"""Files that hold a whole model, by their suffix."""

WAYS = (
    f"{', '.join(SOURCES)}, or a folder in Hugging Face format that exists, a hub id (org/name[@revision]), "
    f"package.module:function, or a file ({', '.join(FILES)})"
)


def open_source(model: str, recipe: SourceRecipe) -> Source:
    """The source called `model`; what lies on the disk comes before what only looks like a name. Raises BadInput."""
    if model in SOURCES:
        return SOURCES[model](recipe)
    path = Path(model).expanduser()
    if path.is_dir():
        return open_folder(path, recipe)
    if path.suffix in FILES and path.is_file():
        return FILES[path.suffix](path, recipe)
    if path.exists():
        raise BadInput(
            f"{model} is a file; give the folder that holds config.json and the weights, or {WAYS}"
        )
    if path.suffix in FILES:
        raise BadInput(f"no file at {model}; give one that exists")
    if module.REFERENCE.fullmatch(model):
        return module.open_module(model, recipe)
    if hub.REFERENCE.fullmatch(model):
        return hub.open_hub(model, recipe)
    if ".." in path.parts or any(separator in model for separator in (os.sep, "/", "\\")):
        raise BadInput(f"no folder at {model}; give {WAYS}")
    raise BadInput(f"unknown model {model!r}; give {WAYS}")
