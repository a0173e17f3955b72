"""Where models come from: a registry by name, and folders in Hugging Face format for everything else.

Opening a source checks it and imports no torch; `Source.load` gives the module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from model_repo.runtime.errors import BadInput

from . import demo, minilm
from .base import Source
from .huggingface import open_folder

if TYPE_CHECKING:
    from pipeline.recipe import SourceRecipe

__all__ = ["SOURCES", "Source", "open_source"]

SOURCES: Mapping[str, Callable[[SourceRecipe], Source]] = {
    demo.NAME: demo.open_demo,
    minilm.NAME: minilm.open_minilm,
}
"""Models that have a name. A folder of the same name is given as ./name."""


def open_source(model: str, recipe: SourceRecipe) -> Source:
    """The source called `model`, or the folder at that path. Raises BadInput."""
    if model in SOURCES:
        return SOURCES[model](recipe)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return open_folder(folder, recipe)
    if folder.exists():
        raise BadInput(f"{model} is a file; give the folder that holds config.json and the weights")
    known = ", ".join(SOURCES)
    if ".." in folder.parts or any(separator in model for separator in (os.sep, "/", "\\")):
        raise BadInput(f"no folder at {model}; give {known}, or a folder in Hugging Face format that exists")
    raise BadInput(f"unknown model {model!r}; give {known}, or a folder in Hugging Face format that exists")
