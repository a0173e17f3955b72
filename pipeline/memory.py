"""Memory between stages."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> None:
    """Returns freed memory to the system.

    glibc keeps what large allocations leave behind; a stage's weights would then count beside the next one's.
    Where the C library has no such call, nothing happens.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
