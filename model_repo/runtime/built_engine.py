"""What the record of a TensorRT engine's build says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import BadInput

_PACKAGES = {"tensorrt": ("tensorrt", "TensorRT"), "tensorrt-rtx": ("tensorrt_rtx", "TensorRT-RTX")}


@dataclass(frozen=True)
class BuiltEngine:
    """An engine of target `tensorrt` or `tensorrt-rtx`, in the file `path`.

    version: of the package that built it. compute_capabilities: what it was built for ("8.9"); none where it is for any
    that the package knows. profiles: their names, in the engine's order. plugins: libraries that it needs.
    """

    path: Path
    target: str
    version: str
    compute_capabilities: tuple[str, ...]
    profiles: tuple[str, ...]
    plugins: tuple[Path, ...] = ()

    @classmethod
    def of_record(cls, path: Path, record: Mapping[str, Any], plugins: Sequence[Path] = ()) -> BuiltEngine:
        """From layers.json, which lies beside the engine. Raises BadInput when it says too little."""
        try:
            chips = tuple(record["compute_capabilities"])
            if not chips and record.get("gpu"):
                chips = (record["gpu"]["capability"],)
            target, version, profiles = record["target"], record["version"], tuple(record["profiles"])
        except (KeyError, TypeError) as error:
            raise BadInput(f"the record beside {path} lacks {error}; build the engine again") from error
        return cls(path, target, version, chips, profiles, tuple(plugins))

    @property
    def module(self) -> str:
        """Name of the package's module."""
        return _PACKAGES[self.target][0]

    @property
    def title(self) -> str:
        """What the package is called."""
        return _PACKAGES[self.target][1]

    @property
    def requirement(self) -> str:
        """What pip installs, to have just the version that built it."""
        return f"{self.module.replace('_', '-')}=={self.version}"
