"""Checks before a model takes its first request: files, packages, and that tensors come through whole.

Each failure says in words what is wrong and what to do; tritonserver prints it and does not serve the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..runtime.errors import BadInput
from ..runtime.manifest import Manifest
from .interface import FILES
from .requirements import check_requirement
from .tensors import check_round_trip


def version_folder(args: dict[str, str]) -> Path:
    """The folder of this model's version, from the arguments that Triton gives to `initialize`."""
    return Path(args["model_repository"]) / args["model_version"]


def check(folder: Path) -> None:
    """Raises BadInput when a file changed since emit, a package is missing or old, or tensors get damaged."""
    Manifest.read(folder / FILES).verify_outputs(folder)
    for line in (folder / "requirements.txt").read_text(encoding="utf-8").splitlines():
        check_requirement(line)
    check_round_trip()


def parameter(model_config: dict[str, Any], name: str) -> str:
    """A parameter of config.pbtxt. Raises BadInput when it is missing."""
    try:
        return str(model_config["parameters"][name]["string_value"])
    except KeyError:
        raise BadInput(f"config.pbtxt has no parameter {name!r}; emit the repository again") from None
