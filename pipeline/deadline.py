"""Time limits that the process above keeps: for code that never gives the interpreter back, such as a call into C."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

GRACE_SECONDS = 5.0
"""What the process itself gets on top of the limit, to end the code and say at which line it was."""

TIME_OPTION = "source.load_seconds (--load-seconds)"
"""The setting that bounds calls of a user's code."""

_file: Path | None = None


class Overdue(NamedTuple):
    """Code that is beyond its limit: what it is, and the limit in seconds."""

    what: str
    seconds: float


def announce_in(file: Path) -> None:
    """From now on `announced` tells the process above, which looks into `file`."""
    global _file
    _file = file


@contextmanager
def announced(what: str, seconds: float) -> Iterator[None]:
    """The block may take `seconds`; where no process above keeps limits, nothing happens."""
    if _file is None:
        yield
        return
    temporary = _file.with_name(f".{_file.name}.{os.getpid()}")
    temporary.write_text(json.dumps([what, seconds, time.monotonic() + seconds]), encoding="utf-8")
    temporary.replace(_file)
    try:
        yield
    finally:
        _file.unlink(missing_ok=True)


def overdue(file: Path) -> Overdue | None:
    """What is beyond its limit and the grace; None while nothing is."""
    try:
        what, seconds, end = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Overdue(what, seconds) if time.monotonic() > end + GRACE_SECONDS else None
