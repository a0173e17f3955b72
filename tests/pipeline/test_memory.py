"""What is freed goes back to the system."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.memory import give_back

PIECES = 64
PIECE_BYTES = 100 * 1024  # below the size that the C library maps by itself


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="needs glibc's malloc_trim",
)
def test_freed_memory_leaves_the_process() -> None:
    pieces = [np.ones(PIECE_BYTES, np.uint8) for _ in range(PIECES * 10)]
    wall = [
        pieces[index].copy() for index in range(0, len(pieces), 10)
    ]  # keeps the heap from shrinking by itself
    full = resident_bytes()
    del pieces
    give_back()
    assert full - resident_bytes() > PIECES * 10 * PIECE_BYTES // 2
    assert all(piece.all() for piece in wall)


def resident_bytes() -> int:
    """Resident anonymous memory, from the kernel."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon in /proc/self/status")
