"""Reading the small files of a checkpoint folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model_repo.runtime.errors import BadInput


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises BadInput when the file cannot be read or holds anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{path} is not readable JSON ({error}); get the file again") from error
    if not isinstance(data, dict):
        raise BadInput(f"{path} holds a JSON {type(data).__name__}; an object is expected")
    return data


def read_optional_json(path: Path) -> dict[str, Any]:
    """As `read_json`; empty when there is no such file."""
    return read_json(path) if path.is_file() else {}
