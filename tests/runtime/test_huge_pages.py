"""Large pages under memory that is in use already.

Each case runs in a process of its own: how the memory of this one lies depends on the tests before.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from model_repo.runtime.huge_pages import PAGE_BYTES

# What the kernel says of itself in smaps; first of memory that is collapsed by hand: does it grant large pages at all?
CHILD = f"""
import ctypes, mmap, re
import numpy as np
from model_repo.runtime.huge_pages import PAGE_BYTES, collapse

def huge_bytes_at(address):
    inside = False
    for line in open("/proc/self/smaps", errors="replace"):
        header = re.match("([0-9a-f]+)-([0-9a-f]+) ", line)
        if header:
            inside, heap = int(header[1], 16) <= address < int(header[2], 16), line.endswith("[heap]\\n")
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) * 1024, heap
    return 0, False

libc = ctypes.CDLL(None)
probe = mmap.mmap(-1, 4 * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
probe.write(bytes(4 * PAGE_BYTES))
begin = -(-ctypes.addressof(ctypes.c_char.from_buffer(probe)) // PAGE_BYTES) * PAGE_BYTES
granted = libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(2 * PAGE_BYTES), 25) == 0 and huge_bytes_at(begin)[0] > 0

numbers = np.random.default_rng(0).integers(0, 2**62, {8 * PAGE_BYTES // 8})
expected = numbers.tobytes()
collapse()
huge, heap = huge_bytes_at(numbers.ctypes.data + PAGE_BYTES)
print(int(granted), int(numbers.tobytes() == expected), int(huge > 0), int(heap))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="large pages are asked for on Linux only")
@pytest.mark.parametrize("place", ["mmap", "heap"])
def test_memory_keeps_its_content_and_lies_on_large_pages(place: str) -> None:
    threshold = PAGE_BYTES if place == "mmap" else 64 * PAGE_BYTES
    tunables = f"glibc.malloc.mmap_threshold={threshold}"
    # numpy would ask for large pages by itself.
    environment = os.environ | {"GLIBC_TUNABLES": tunables, "NUMPY_MADVISE_HUGEPAGE": "0"}
    command = [sys.executable, "-c", CHILD]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    granted, kept, large, heap = (field == "1" for field in result.stdout.split())
    assert kept
    assert heap == (place == "heap")
    if not granted:
        pytest.skip("this kernel grants no large pages on request")
    assert large
