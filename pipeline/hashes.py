"""sha256 of files, remembered by size, modification time and inode, so that big files are read once."""

from __future__ import annotations

import json
import os
from pathlib import Path

from model_repo.runtime.manifest import FileRecord, sha256_of


class HashCache:
    """Hashes of files, kept in one JSON file; a file that was touched since is read again.

    The JSON maps absolute path -> [size, mtime_ns, inode, sha256]. Losing it costs time, nothing else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[int | str]] = {}
        self._changed = False
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return  # absent or damaged: every file is read again
        if isinstance(data, dict):
            self._known = {key: value for key, value in data.items() if isinstance(value, list)}

    def sha256(self, path: Path) -> str:
        """Hash of the file at `path`, from memory when the file is the same. Raises OSError."""
        path = path.absolute()
        stamp = _stamp(path)
        known = self._known.get(str(path))
        if known is not None and known[:3] == stamp:
            return str(known[3])
        digest = sha256_of(path)
        if _stamp(path) == stamp:  # not written to while it was read
            self._known[str(path)] = [*stamp, digest]
            self._changed = True
        return digest

    def remember(self, path: Path, digest: str) -> None:
        """Notes the hash of a file that was just written with known content."""
        path = path.absolute()
        self._known[str(path)] = [*_stamp(path), digest]
        self._changed = True

    def record(self, path: Path, relative_to: Path) -> FileRecord:
        """The manifest's record of `path`."""
        return FileRecord.of(path, relative_to, self.sha256(path))

    def save(self) -> None:
        """Writes what is known about files that still exist, atomically. Raises OSError."""
        if not self._changed:
            return
        alive = {key: value for key, value in self._known.items() if os.path.lexists(key)}
        temporary = self._path.with_name(f".staging-{self._path.name}")
        temporary.write_text(json.dumps(alive, indent=0) + "\n", encoding="utf-8")
        temporary.replace(self._path)
        self._changed = False


def _stamp(path: Path) -> list[int | str]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]
