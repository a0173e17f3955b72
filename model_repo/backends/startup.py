"""Checks before a model takes its first request: files, packages, and that tensors come through whole.

Each failure says in words what is wrong and what to do; tritonserver prints it and does not serve the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..runtime.capture import Capture
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


def capture(model_config: dict[str, Any], model: str) -> Capture | None:
    """Where the requests of `model` are kept, <capture_folder>/<model>.jsonl; None where none are.

    Raises BadInput when the file cannot be written.
    """
    folder = parameter(model_config, "capture_folder")
    if not folder:
        return None
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"requests cannot be captured in {folder}: {error}; name another folder") from error
    return Capture(path / f"{model}.jsonl", model, int(parameter(model_config, "capture_bytes")))


def optional_parameter(model_config: dict[str, Any], name: str) -> str | None:
    """A parameter of config.pbtxt that not every model of its kind has."""
    return parameter(model_config, name) if name in model_config.get("parameters", {}) else None


def parameter(model_config: dict[str, Any], name: str) -> str:
    """A parameter of config.pbtxt. Raises BadInput when it is missing."""
    try:
        return str(model_config["parameters"][name]["string_value"])
    except KeyError:
        raise BadInput(f"config.pbtxt has no parameter {name!r}; emit the repository again") from None
