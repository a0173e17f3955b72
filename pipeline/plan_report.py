"""What a plan of TensorRT or TensorRT-RTX is, as far as can be told without a GPU: deserializing it takes a driver."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
_BODY_BYTES_AT = 16
"""Offset of how many bytes the whole plan has, in 8 of them."""
_CHIPS_AT = 32
_CHIPS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities in the order of the bits at that offset; an engine for any GPU has all but the first, and the
bits of ones to come."""
_HEADER_BYTES = 64


@dataclass(frozen=True)
class PlanReport:
    """`title` and `version` are those of the header, or of the record where the header is not known.

    `chips`: compute capabilities that it runs on, where that is known. `problems`: why it does not run here, or at all.
    `record`: what the build wrote down of the plan; None where that is not beside the file, or is of another one.
    """

    path: str
    title: str
    version: str
    bytes: int
    record: dict[str, Any] | None
    chips: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

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
        bits = int.from_bytes(header[_CHIPS_AT : _CHIPS_AT + 4], "little")
        chips = tuple(chip for place, chip in enumerate(_CHIPS) if bits >> place & 1)
        wanted = int.from_bytes(header[_BODY_BYTES_AT : _BODY_BYTES_AT + 8], "little")
        problems = [] if size == wanted else [f"the file has {size} bytes and should have {wanted}"]
        problems += _elsewhere("tensorrt-rtx", version, chips)
        return PlanReport(str(path), "TensorRT-RTX", version, size, record, chips, tuple(problems))
    if record is None:
        raise BadInput(
            f"{path} is not a plan of TensorRT-RTX (it begins with {header[:4]!r}, not {_RTX!r}), and no {LAYERS} "
            "beside it says what else it is"
        )
    version, gpu = str(record["version"]), record.get("gpu")
    chips = (gpu["capability"],) if gpu else ()
    same = "hardware_compatibility" not in record.get("builder", {})
    problems = _elsewhere(str(record["target"]), version, chips if same else ())
    return PlanReport(str(path), str(record["target"]), version, size, record, chips, tuple(problems))


def _elsewhere(target: str, version: str, chips: Sequence[str]) -> list[str]:
    """Why an engine for `chips` (empty: not known), made by `version`, does not run with the GPU and package here."""
    from .targets.tensorrt.bindings import installed
    from .targets.tensorrt.gpu_here import gpu_here

    problems, gpu, here = [], gpu_here(), installed(target)
    if chips and gpu is not None and gpu.capability not in chips:
        problems.append(
            f"it is built for compute capability {', '.join(chips)}; {gpu.name}, which is here, has {gpu.capability}"
        )
    if here and here.split(".")[:3] != version.split(".")[:3]:
        problems.append(f"it is built by version {version}; {here} is installed")
    return problems


def _record(path: Path, size: int) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("bytes") == size else None
