"""What requirements.txt of a version folder asks for, against what is installed."""

from __future__ import annotations

import importlib.metadata
import re

from ..runtime.errors import BadInput

_REQUIREMENT = re.compile(r"([\w-]+)>=([\d.]+)")


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
