"""Putting finished files and folders into place: a reader sees the old one or the new one, never a half."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # renameat2(2): swap the two names in one step


def publish(staged: Path, final: Path) -> None:
    """Moves `staged` to `final`; a file or folder that is there is replaced and removed.

    Both lie on one file system. A folder is swapped in one step where the system can do that; elsewhere there
    is a moment in which neither folder has the name. Raises OSError.
    """
    if not staged.is_dir():
        staged.replace(final)
        return
    if not final.exists():
        staged.rename(final)
        return
    if exchange(staged, final):
        shutil.rmtree(staged)
        return
    old = staged.with_name(f"{staged.name}-old")
    if old.exists():
        shutil.rmtree(old)
    final.rename(old)
    staged.rename(final)
    shutil.rmtree(old)


def exchange(first: Path, second: Path) -> bool:
    """Swaps two names in one step; False where the system cannot. Raises OSError when it refuses."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    result = renameat2(
        _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), ctypes.c_uint(_RENAME_EXCHANGE)
    )
    if result == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))
