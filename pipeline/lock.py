"""One build at a time in a folder: the second waits and says for whom."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "build.lock"


@contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the folder's lock; the kernel gives it back when the process ends, however it ends.

    `folder` is made when it is missing. While another process holds the lock, `say` gets one line about who
    does, and the call waits. Raises OSError when the folder cannot be made or written.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / NAME
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _acquire(descriptor, folder, say)
            if not _is_current(descriptor, path):
                continue  # the holder removed the folder and its lock while this process waited
            holder = {"pid": os.getpid(), "command": " ".join(sys.argv), "since": time.strftime("%H:%M:%S")}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
            try:
                yield
            finally:
                if _is_current(descriptor, path):
                    path.unlink()
            return
        finally:
            os.close(descriptor)


def _acquire(descriptor: int, folder: Path, say: Callable[[str], None]) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"waiting for {folder}: {_holder(descriptor)} is building there")
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _holder(descriptor: int) -> str:
    """Who holds the lock, in words; the file may be read before its holder has written it."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} ({holder['command']}, since {holder['since']})"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _is_current(descriptor: int, path: Path) -> bool:
    """Whether the locked file still is the one that `path` names."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
