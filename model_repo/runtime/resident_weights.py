"""Weights that operators read where they lie: from the engine's files onto large pages.

ONNX Runtime maps weight files, and a mapped file has pages of 4 KiB. It packs the weights of its own products into
memory, which `huge_pages` can move; those of the project's operators are used as they are. A decode step reads all of
them once, and translating the addresses of so many small pages took it longer than the products.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import NamedTuple

import onnxruntime as ort

WEIGHTS = "weights"
"""The folder beside a graph that its weights lie in."""

_LINE_BYTES = 64


class ResidentWeights(NamedTuple):
    """Weight files by the names that graphs know them by, and their contents. Keep it as long as sessions use it."""

    names: list[str]
    contents: list[memoryview]

    @classmethod
    def read(cls, folder: Path) -> ResidentWeights:
        """All weight files of the engine in `folder`, on large pages where the system grants them."""
        files = sorted((folder / WEIGHTS).iterdir())
        sizes = [path.stat().st_size for path in files]
        room = sum(_whole_lines(size) for size in sizes)
        memory = mmap.mmap(-1, max(room, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        start, contents = 0, []
        for path, size in zip(files, sizes, strict=True):
            part = memoryview(memory)[start : start + size]
            with path.open("rb") as file:
                file.readinto(part)
            contents.append(part)
            start += _whole_lines(size)
        return cls([f"{WEIGHTS}/{path.name}" for path in files], contents)

    def give_to(self, options: ort.SessionOptions) -> None:
        """Sessions made of these options use this memory instead of the files."""
        options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
        options.add_external_initializers_from_files_in_memory(
            self.names, self.contents, [len(part) for part in self.contents]
        )


def _whole_lines(size: int) -> int:
    """Bytes of so many whole cache lines as `size` bytes need."""
    return -(-size // _LINE_BYTES) * _LINE_BYTES
