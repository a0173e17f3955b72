"""scales.json: the range of every observed tensor of one graph, and what it was observed on.

Ranges, not scales: int8, uint8 and E4M3 codes of one tensor are made from the same two ends (`scales_of`), so that one
file serves every target. The file names the graph that its names are of, by hash.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model_repo.runtime.errors import BadInput

from .observers.base import Range, scale_of_range
from .schemes import Scheme

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class TensorRange:
    """What was found of one tensor: the range to cover, and the ends of all that was seen.

    `low` and `high` are tuples of one number, or of one for each slice along `axis` (the heads of a key or value pool).
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    elements: int
    axis: int | None = None

    @property
    def span(self) -> Range:
        """The range as arrays: of shape (), or [slices]."""
        ends = (np.array(end, np.float32) for end in (self.low, self.high))
        return Range(*(end if self.axis is not None else end.reshape(()) for end in ends))

    @property
    def dead_slice(self) -> int | None:
        """The first slice of which nothing but zeros was seen (0 for a tensor in one piece); None without one."""
        ends = zip(self.low, self.high, strict=True)
        return next((place for place, (low, high) in enumerate(ends) if low == high == 0), None)


@dataclass(frozen=True)
class Scales:
    """Ranges by tensor name. `graph_sha256`: of the fused graph; `data_sha256`: of the samples; `method`: one of
    `observers.METHODS`; `scheme`: the format that the ranges were chosen for, in words."""

    graph_sha256: str
    data_sha256: str
    method: str
    scheme: str
    samples: int
    tokens: int
    tensors: Mapping[str, TensorRange] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Writes JSON that `read` reads back, whole or not at all."""
        data = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path, graph_sha256: str | None = None) -> Scales:
        """The ranges at `path`. Raises BadInput: no file, not scales, of another graph than `graph_sha256`, and a range
        that is empty or not finite, by the tensor's name."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BadInput(f"no scales at {path}; run `slipway calibrate {path.parent}` first") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BadInput(f"{path} is not readable ({error}); run `slipway calibrate` again") from error
        if not isinstance(data, dict) or data.pop("schema_version", None) != SCHEMA_VERSION:
            raise BadInput(
                f"{path} holds no scales of this version of slipway; run `slipway calibrate` again"
            )
        try:
            tensors = {name: _tensor(entry) for name, entry in data.pop("tensors").items()}
            scales = cls(**data, tensors=tensors)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path} does not fit ({error}); run `slipway calibrate` again") from error
        if graph_sha256 is not None and scales.graph_sha256 != graph_sha256:
            raise BadInput(
                f"{path} was calibrated on another graph ({scales.graph_sha256[:12]}..., here is "
                f"{graph_sha256[:12]}...); run `slipway calibrate {path.parent}` again"
            )
        for name, tensor in scales.tensors.items():
            _check(path, name, tensor)
        return scales

    def scales_of(
        self, name: str, scheme: Scheme
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32] | None]:
        """Scales and zero points of a tensor stored in `scheme`'s format: of shape (), or [slices] where it has some.

        Raises BadInput when the tensor was not observed, and when it or a slice of it was zero throughout: no scale
        follows from that.
        """
        if name not in self.tensors:
            raise BadInput(f"the scales hold no tensor {name!r}; run `slipway calibrate` on this graph again")
        tensor = self.tensors[name]
        dead = tensor.dead_slice
        if dead is not None:
            part = f", slice {dead}" if tensor.axis is not None else ""
            raise BadInput(
                f"the tensor {name!r}{part} was zero for all calibration data, so that no scale follows; leave it "
                "unquantized, or give data that reaches it"
            )
        return scale_of_range(tensor.span, scheme)


def _tensor(entry: Mapping[str, Any]) -> TensorRange:
    return TensorRange(**{**entry, "low": tuple(entry["low"]), "high": tuple(entry["high"])})


def _check(path: Path, name: str, tensor: TensorRange) -> None:
    ends = (*tensor.low, *tensor.high)
    numbers = all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends)
    if not numbers or not tensor.low or len(tensor.low) != len(tensor.high):
        raise BadInput(
            f"{path}: the range of {name!r} is {tensor.low} to {tensor.high}; it must be numbers, as many low as high"
        )
    if not all(math.isfinite(end) for end in ends):
        raise BadInput(
            f"{path}: the range of {name!r} is {tensor.low} to {tensor.high}; NaN and infinity are no ends"
        )
    if any(low > high for low, high in zip(tensor.low, tensor.high, strict=True)):
        raise BadInput(f"{path}: the range of {name!r} is {tensor.low} to {tensor.high}; low is above high")
