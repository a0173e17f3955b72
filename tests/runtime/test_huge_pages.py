"""Large pages under memory that is in use already."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from model_repo.runtime.huge_pages import PAGE_BYTES, collapse


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="large pages are asked for on Linux only")
def test_memory_keeps_its_content_and_lies_on_large_pages() -> None:
    numbers = np.random.default_rng(0).integers(0, 2**62, 8 * PAGE_BYTES // 8)
    expected = numbers.copy()
    moved = collapse()
    np.testing.assert_array_equal(numbers, expected)
    if moved == 0:
        pytest.skip("this kernel refuses MADV_COLLAPSE")
    address = numbers.ctypes.data + PAGE_BYTES
    assert huge_bytes_at(address) > 0


def huge_bytes_at(address: int) -> int:
    """AnonHugePages of the mapping that holds `address`, from the kernel's own accounts."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii", errors="replace").splitlines():
        header = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if header:
            inside = int(header[1], 16) <= address < int(header[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) * 1024
    return 0
