"""Memory of a process and all that it started, over time, as the kernel counts it (Linux)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

PERIOD_SECONDS = 0.02


class Sample(NamedTuple):
    """One look at a process tree. `at`: time.monotonic(), one clock for all processes of a machine.

    `anonymous`: bytes that only these processes hold, which the system cannot get back without swap. `whole`: resident
    bytes, mapped files included; their pages belong to the page cache, and one that two processes map counts twice.
    """

    at: float
    anonymous: int
    whole: int


class MemoryWatch:
    """Looks at the tree below process `pid` every `PERIOD_SECONDS` in a thread, from `with` to its end.

    A peak that is over within a period can be missed; `most_resident`, the largest of the processes' own high-water
    marks, is exact.
    """

    def __init__(self, pid: int) -> None:
        self.samples: list[Sample] = []
        self.most_resident = 0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def between(self, begin: float, end: float) -> list[Sample]:
        """The samples of a stretch of time."""
        return [sample for sample in self.samples if begin <= sample.at <= end]

    def _watch(self) -> None:
        while not self._stop.is_set():
            anonymous = whole = 0
            for pid in tree(self._pid):
                fields = _status(pid)
                anonymous += fields.get("RssAnon", 0)
                whole += fields.get("VmRSS", 0)
                self.most_resident = max(self.most_resident, fields.get("VmHWM", 0))
            self.samples.append(Sample(time.monotonic(), anonymous, whole))
            self._stop.wait(PERIOD_SECONDS)


def tree(pid: int) -> Iterator[int]:
    """The process and its descendants, of those that are there."""
    yield pid
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return
    for thread in threads:
        try:
            children = (thread / "children").read_text(encoding="ascii").split()
        except OSError:
            continue
        for child in children:
            yield from tree(int(child))


def _status(pid: int) -> dict[str, int]:
    """Sizes in bytes from /proc/PID/status; empty when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        name, _, rest = line.partition(":")
        if name in ("RssAnon", "VmRSS", "VmHWM"):
            found[name] = int(rest.split()[0]) * 1024
    return found
