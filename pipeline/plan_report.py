"""What a plan of TensorRT or TensorRT-RTX is, as far as can be told without a GPU: deserializing it takes a driver."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model_repo.runtime.errors import BadInput

from .workspace import LAYERS

SUFFIXES = (".rtx", ".plan", ".engine")
_RTX = b"vtrt"
"""How plans of TensorRT-RTX begin."""
_VERSION_AT = 24
"""Offset of major, minor and patch, a byte each, in the header of TensorRT-RTX 1.7."""
_HEADER_BYTES = 64


@dataclass(frozen=True)
class PlanReport:
    """`title` and `version` are those of the header, or of the record where the header is not known.

    `record`: what the build wrote down of the plan; None where that is not beside the file, or is of another one.
    """

    path: str
    title: str
    version: str
    bytes: int
    record: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def inspect_plan(path: Path) -> PlanReport:
    """Reads the header, and the record that the build left beside.

    Raises BadInput for a file that neither says is a plan.
    """
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error}); give a .rtx, .plan or .engine file") from error
    record = _record(path.with_name(LAYERS), size)
    if header.startswith(_RTX) and len(header) == _HEADER_BYTES:
        version = ".".join(str(byte) for byte in header[_VERSION_AT : _VERSION_AT + 3])
        return PlanReport(str(path), "TensorRT-RTX", version, size, record)
    if record is None:
        raise BadInput(
            f"{path} is not a plan of TensorRT-RTX (it begins with {header[:4]!r}, not {_RTX!r}), and no {LAYERS} "
            "beside it says what else it is"
        )
    return PlanReport(str(path), str(record["target"]), str(record["version"]), size, record)


def _record(path: Path, size: int) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("bytes") == size else None
