"""Large pages under the weights: Linux moves memory that is already in use when asked to.

A decode step reads every weight once, so it is bound by memory, and with 4 KiB pages by address translation
as well. ONNX Runtime allocates its packed weights with ordinary pages. On Linux 6.1 and later
madvise(MADV_COLLAPSE) puts memory that exists onto pages of 2 MiB; where that is refused, everything works
as before. On a model of SmolLM2-135M's shape: 13% less time with 1 stream, 7% with 16, 5% in prefill.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

PAGE_BYTES = 2 << 20
_MADV_HUGEPAGE = 14
_MADV_COLLAPSE = 25
_FIELDS_OF_ANONYMOUS = 5  # a line of /proc/self/maps without a name
_HEAP = (
    "[heap]"  # where malloc puts large blocks too, once it has freed some: it raises its own limit for mmap
)


def collapse() -> int:
    """Asks for large pages under all anonymous memory of this process. Returns the bytes that got them.

    Costs about one copy of that memory, once. 0 where the system knows no such thing.
    """
    if not sys.platform.startswith("linux"):
        return 0
    libc = ctypes.CDLL(None)
    moved = 0
    for start, end in list(_anonymous_ranges()):
        arguments = ctypes.c_void_p(start), ctypes.c_size_t(end - start)
        if libc.madvise(*arguments, _MADV_HUGEPAGE) == 0 and libc.madvise(*arguments, _MADV_COLLAPSE) == 0:
            moved += end - start
    return moved


def _anonymous_ranges() -> Iterator[tuple[int, int]]:
    """Address ranges of writable anonymous memory, cut to whole large pages."""
    for line in Path("/proc/self/maps").read_text(encoding="ascii", errors="replace").splitlines():
        fields = line.split()
        named = fields[_FIELDS_OF_ANONYMOUS:]
        if named not in ([], [_HEAP]) or not fields[1].startswith("rw"):
            continue
        start, end = (int(address, 16) for address in fields[0].split("-"))
        start, end = -(-start // PAGE_BYTES) * PAGE_BYTES, end // PAGE_BYTES * PAGE_BYTES
        if end > start:
            yield start, end
