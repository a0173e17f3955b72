"""What a model is called by default: as a folder of artifacts, and as a served model. Imports nothing heavy."""

from __future__ import annotations

import re
from pathlib import Path

GRAPH_SUFFIXES = (".onnx", ".pt2")
"""Files that hold a whole model."""


def model_name(model: str) -> str:
    """The last part of what the user calls the model, without what cannot be in a name.

    A folder's own name, a file's without its suffix, a function's, a hub id's without organisation and revision.
    """
    path = Path(model).expanduser()
    if path.is_dir() or path.is_file():
        name = path.resolve().name
        return safe(
            name.removesuffix(path.suffix) if path.suffix in GRAPH_SUFFIXES and path.is_file() else name
        )
    last = re.split(r"[/\\]", model)[-1]
    last = last.rpartition(":")[2].partition("@")[0]
    return safe(last.removesuffix(next((suffix for suffix in GRAPH_SUFFIXES if last.endswith(suffix)), "")))


def safe(name: str) -> str:
    """`name` with everything but letters, digits, '.', '_' and '-' replaced."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-_") or "model"
