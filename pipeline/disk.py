"""Room on the disk: estimated before a build, explained when a write fails."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from model_repo.runtime.errors import BadInput

FreeBytes = Callable[[Path], int]
"""Gives the bytes that may still be written below a folder."""

FIXED_BYTES = 64 * 2**20
"""Bytes besides weights: graphs, runtime, tokenizer, plugin."""

FLOAT32_BYTES = 4
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def free_bytes(folder: Path) -> int:
    """Bytes free for this user on the file system that `folder`, which need not exist yet, would lie on."""
    return shutil.disk_usage(_existing(folder)).free


def float32_bytes(files: Sequence[Path]) -> int:
    """Bytes of a model's weights in float32.

    Exact for safetensors, whose header lists the shapes; for other files twice their size, as if they held
    16-bit numbers. Headers that cannot be read count by size: the loader refuses them in its own words.
    """
    return sum(_float32_bytes(path) for path in files)


def check_room(folder: Path, needed: int, free: FreeBytes) -> None:
    """Raises BadInput when fewer than `needed` bytes are free."""
    available = free(folder)
    if available < needed:
        raise BadInput(
            f"not enough disk space for {folder}: this build needs about {in_words(needed)}, "
            f"{in_words(available)} are free there; free some, or give another --output"
        )


@contextmanager
def write_errors(folder: Path, needed: int, free: FreeBytes) -> Iterator[None]:
    """Turns a full disk, a forbidden or a misplaced folder into BadInput that says so; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(folder, needed, free, error) from error
        if error.errno in _FORBIDDEN and _is_below(error.filename, folder):
            raise BadInput(
                f"{folder} is not writable ({error.strerror}); give another --output or change its mode"
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST) and _is_below(error.filename, folder):
            raise BadInput(
                f"{folder} cannot be a folder ({error.strerror}); give another --output"
            ) from error
        raise
    except Exception as error:
        # Libraries that write by themselves report a full disk as an error of their own.
        if os.strerror(errno.ENOSPC) in str(error):
            raise _full(folder, needed, free, error) from error
        raise


def in_words(number: int) -> str:
    """Bytes for people: 1536 -> '1.5 KiB'."""
    value = float(number)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def _full(folder: Path, needed: int, free: FreeBytes, error: Exception) -> BadInput:
    return BadInput(
        f"the disk is full at {folder} ({error}): this build needs about {in_words(needed)}, "
        f"{in_words(free(folder))} are free; free some, or give another --output"
    )


def _existing(folder: Path) -> Path:
    """The nearest folder above, or `folder` itself, that exists."""
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder


def _is_below(name: object, folder: Path) -> bool:
    """Whether the failing path is the output folder, below it, or a folder above it."""
    if not isinstance(name, str):
        return False
    path, folder = Path(name).absolute(), folder.absolute()
    return path.is_relative_to(folder) or folder.is_relative_to(path)


def _float32_bytes(path: Path) -> int:
    size = path.stat().st_size
    if path.suffix != ".safetensors":
        return 2 * size if size > 2**20 else size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, size)))
        total = 0
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            elements = 1
            for dim in entry["shape"]:
                elements *= dim
            total += elements * FLOAT32_BYTES
        return total
    except (ValueError, KeyError, TypeError, AttributeError):
        return size
