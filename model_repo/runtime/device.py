"""A GPU as far as executors need one: memory, one stream, staging buffers, events and captured work.

Addresses are integers, so that nothing above this interface knows which package speaks to the driver. Everything that
is queued (`upload`, `download`, `copy`, `zero`, an engine's `enqueue`) runs in order on `stream`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from .errors import SlipwayError

ALIGNMENT = 256
"""Bytes that addresses of allocations are multiples of."""


class OutOfMemory(SlipwayError):
    """An allocation of `needed` bytes that a device with `free` bytes left did not give."""

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(f"{needed} bytes of device memory were asked for and {free} are free")
        self.needed = needed
        self.free = free


class Memory(NamedTuple):
    """Bytes of a device's memory."""

    free: int
    total: int


class Event(Protocol):
    """A place in the stream."""

    def wait(self) -> None:
        """Returns when everything queued before the event has been done. Raises SlipwayError when some of it failed."""


class CapturedWork(Protocol):
    """Work that was captured once and is launched as one (a CUDA graph). It holds addresses and shapes as they were."""

    def launch(self) -> None:
        """Queues all of it."""


class Device(Protocol):
    """One device and its one stream."""

    @property
    def stream(self) -> int:
        """The stream, as the integer value of a cudaStream_t."""

    @property
    def memory(self) -> Memory:
        """What is free now, and all there is."""

    def allocate(self, count: int) -> int:
        """The address of `count` bytes, aligned to `ALIGNMENT`, uninitialized. Raises OutOfMemory."""

    def free(self, address: int) -> None:
        """Gives an allocation back; nothing queued may use it any more."""

    def staging(self, count: int) -> npt.NDArray[np.uint8]:
        """Host memory uint8 [count] that copies may read and write while the host goes on (page-locked)."""

    def upload(self, address: int, source: npt.NDArray[Any]) -> None:
        """Queues a copy of `source`, contiguous and in staging memory, to the device."""

    def download(self, target: npt.NDArray[Any], address: int) -> None:
        """Queues a copy from the device into `target`, contiguous and in staging memory."""

    def copy(self, target: int, source: int, count: int) -> None:
        """Queues a copy of `count` bytes on the device."""

    def zero(self, address: int, count: int) -> None:
        """Queues zeros for `count` bytes."""

    def record(self) -> Event:
        """An event behind all that is queued so far."""

    def capture(self, work: Callable[[], None]) -> CapturedWork:
        """Runs `work`, whose queued commands are captured and not carried out. Raises SlipwayError when something
        in it cannot be captured."""

    def close(self) -> None:
        """Gives everything back."""
