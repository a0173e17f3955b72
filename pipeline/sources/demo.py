"""`demo`: the project's own small language model, in demo/model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from model_repo.runtime.errors import BadInput

from .base import Source
from .huggingface import open_folder

if TYPE_CHECKING:
    from pipeline.recipe import SourceRecipe

NAME = "demo"
FOLDER = Path(__file__).resolve().parents[2] / "demo" / "model"


def open_demo(recipe: SourceRecipe) -> Source:
    """Raises BadInput when the model is not there (an installation without the repository)."""
    if not FOLDER.is_dir():
        raise BadInput(
            f"the demo model is not at {FOLDER}; run from a clone of the repository, or `make train-demo`"
        )
    return open_folder(FOLDER, recipe, NAME)
