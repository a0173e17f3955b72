"""The manifest: what a stage was given, what it made, with what, and how to make it again.

JSON, one schema. A manifest lies beside its artifact as `<stage>.json`. The runtime reads engines' manifests
too, so the schema lives here; standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .contract import EngineSpec
from .errors import BadInput

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class FileRecord:
    """One file: path relative to the manifest's folder, sha256 in hex, size in bytes."""

    path: str
    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path, relative_to: Path, sha256: str | None = None) -> FileRecord:
        """Reads and hashes `path` unless its hash is known already."""
        name = os.path.relpath(path, relative_to)
        return cls(name, sha256 or sha256_of(path), path.stat().st_size)


@dataclass(frozen=True)
class Manifest:
    """One stage's record. `parity` holds measured figures, or 'not run: <reason>'. Seconds are wall time."""

    stage: str
    recipe: Mapping[str, Any]
    recipe_sha256: str
    inputs: tuple[FileRecord, ...]
    outputs: tuple[FileRecord, ...]
    versions: Mapping[str, str]
    seconds: float
    parity: Mapping[str, Any] | str
    command: tuple[str, ...]
    engine: EngineSpec | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    host: str = field(default_factory=lambda: f"{platform.system()} {platform.machine()}")
    schema_version: int = SCHEMA_VERSION

    def write(self, path: Path) -> None:
        """Writes JSON through a temporary file in the same folder: a reader sees the old or the new."""
        data = asdict(self)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Reads `path`. Raises BadInput when it is missing, not JSON or of another schema."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BadInput(f"no manifest at {path}; is {path.parent} a folder that slipway built?") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise BadInput(f"{path} is not a readable manifest ({error}); build it again") from error
        if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
            found = data.get("schema_version") if isinstance(data, dict) else type(data).__name__
            raise BadInput(
                f"{path} has schema version {found!r}, this slipway reads {SCHEMA_VERSION}; build it again"
            )
        try:
            data["inputs"] = tuple(FileRecord(**record) for record in data["inputs"])
            data["outputs"] = tuple(FileRecord(**record) for record in data["outputs"])
            data["command"] = tuple(data["command"])
            data["engine"] = EngineSpec.from_dict(data["engine"]) if data.get("engine") else None
            return cls(**data)
        except (KeyError, TypeError) as error:
            raise BadInput(f"{path} does not fit the manifest schema ({error}); build it again") from error

    def verify_outputs(self, folder: Path, may_lack: Collection[str] = ()) -> None:
        """Hashes every output below `folder`. Raises BadInput naming the first missing or changed one.

        Those whose paths are in `may_lack` need not be there.
        """
        for record in self.outputs:
            path = folder / record.path
            if record.path in may_lack and not path.exists():
                continue
            if not path.is_file():
                raise BadInput(f"{path} is missing; its manifest lists it. Build it again")
            if path.stat().st_size != record.bytes or sha256_of(path) != record.sha256:
                raise BadInput(
                    f"{path} has changed since it was built (its sha256 is not {record.sha256[:12]}...); "
                    "build it again"
                )


def sha256_of(path: Path) -> str:
    """sha256 of a file in hex; reads it in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(value: Any) -> str:
    """sha256 of a JSON value in its canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
