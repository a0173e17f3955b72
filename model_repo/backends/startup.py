"""Checks before a model takes its first request: files, packages, and that tensors come through whole.

Each failure says in words what is wrong and what to do; tritonserver prints it and does not serve the model.
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

from ..runtime.errors import BadInput
from ..runtime.manifest import Manifest
from .interface import FILES
from .tensors import check_round_trip

_REQUIREMENT = re.compile(r"([\w-]+)>=([\d.]+)")


def version_folder(args: dict[str, str]) -> Path:
    """The folder of this model's version, from the arguments that Triton gives to `initialize`."""
    return Path(args["model_repository"]) / args["model_version"]


def check(folder: Path) -> None:
    """Raises BadInput when a file changed since emit, a package is missing or old, or tensors get damaged."""
    Manifest.read(folder / FILES).verify_outputs(folder)
    for line in (folder / "requirements.txt").read_text(encoding="utf-8").splitlines():
        check_requirement(line)
    check_round_trip()


def check_requirement(line: str) -> None:
    """Compares one 'name>=version' line of requirements.txt with what is installed. Raises BadInput."""
    match = _REQUIREMENT.fullmatch(line.strip())
    if match is None:
        raise BadInput(f"requirements.txt holds {line!r}; its lines are 'name>=version'")
    name, least = match.groups()
    advice = "run pip install -r requirements.txt in the server's Python environment"
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise BadInput(f"package {name} is missing; {advice}") from None
    if _release(installed) < _release(least):
        raise BadInput(f"package {name} is {installed}, at least {least} is needed; {advice}")


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def parameter(model_config: dict[str, Any], name: str) -> str:
    """A parameter of config.pbtxt. Raises BadInput when it is missing."""
    try:
        return str(model_config["parameters"][name]["string_value"])
    except KeyError:
        raise BadInput(f"config.pbtxt has no parameter {name!r}; emit the repository again") from None
