"""The device protocol over the host's own memory: for tests, for measuring the host's part of a step, and for engines
that compute on the CPU.

Addresses are real, so that what reads device memory by address (an emulated library of kernels, an engine that wraps
it in arrays) works as it is. Misuse that a GPU answers with wrong numbers is an error here: copies beyond an
allocation, copies from memory that is not staging memory.
"""

from __future__ import annotations

import os
import queue
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .device import ALIGNMENT, CapturedWork, Event, Memory, OutOfMemory
from .errors import SlipwayError
from .kernel_library import Enqueued, Kernels, KernelTensor

Order = Literal["at_once", "when_awaited", "in_thread"]
"""When queued work is done: as it is queued; as late as can be, by whoever waits for an event behind it (so that what
the host changes too early shows); or by a thread, while the host goes on."""

Work = Callable[[], None]
Bytes = npt.NDArray[np.uint8]


class HostDevice:
    """A device in the host's memory. limit: bytes that allocations may take together; None: the machine's memory."""

    def __init__(self, order: Order = "at_once", limit: int | None = None) -> None:
        self._total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if limit is None else limit
        self._used = 0
        self._allocated: dict[int, Bytes] = {}
        self._starts: list[int] = []
        self._staging: dict[int, Bytes] = {}
        self._staging_starts: list[int] = []
        self._recorded: list[Work] | None = None  # while work is captured
        self._section = _Section()
        self._order = order
        self._late: list[Work] = []
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work_off, name="slipway-host-device", daemon=True)
        if order == "in_thread":
            self._thread.start()

    @property
    def stream(self) -> int:
        """The default stream: emulated kernels run as they are called."""
        return 0

    @property
    def memory(self) -> Memory:
        """Bytes below the limit."""
        return Memory(self._total - self._used, self._total)

    def allocate(self, count: int) -> int:
        """See `Device.allocate`."""
        if count > self._total - self._used:
            raise OutOfMemory(count, self._total - self._used)
        held = _aligned(count)
        address = held.ctypes.data
        self._allocated[address] = held
        self._starts = sorted(self._allocated)
        self._used += count
        return address

    def free(self, address: int) -> None:
        """See `Device.free`. Raises SlipwayError when there is no such allocation."""
        if address not in self._allocated:
            raise SlipwayError(f"{address:#x} is not the address of an allocation")
        self._used -= len(self._allocated.pop(address))
        self._starts = sorted(self._allocated)

    def staging(self, count: int) -> Bytes:
        """See `Device.staging`."""
        held = _aligned(count)
        self._staging[held.ctypes.data] = held
        self._staging_starts = sorted(self._staging)
        return held

    def view(self, address: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The memory at an address as an array. Raises SlipwayError where it leaves an allocation."""
        kind = np.dtype(dtype)
        return self._memory(address, int(np.prod(shape)) * kind.itemsize).view(kind).reshape(shape)

    def upload(self, address: int, source: npt.NDArray[Any]) -> None:
        """See `Device.upload`."""
        target, given = self._memory(address, source.nbytes), self._staged(source)
        self.queue(lambda: np.copyto(target, given))

    def download(self, target: npt.NDArray[Any], address: int) -> None:
        """See `Device.download`."""
        source, given = self._memory(address, target.nbytes), self._staged(target)
        self.queue(lambda: np.copyto(given, source))

    def copy(self, target: int, source: int, count: int) -> None:
        """See `Device.copy`."""
        to, given = self._memory(target, count), self._memory(source, count)
        self.queue(lambda: np.copyto(to, given))

    def zero(self, address: int, count: int) -> None:
        """See `Device.zero`."""
        memory = self._memory(address, count)
        self.queue(lambda: memory.fill(0))

    def queue(self, work: Work) -> None:
        """Queues any work: an engine's on this device, which takes its shapes and addresses along.

        What it raises, the next event raises when it is waited for.
        """
        if self._recorded is not None:
            self._recorded.append(work)
        else:
            self._put(self._section.guarded(work))

    def record(self) -> Event:
        """See `Device.record`. The event raises what failed since the one before."""
        section, self._section = self._section, _Section()
        self._put(section.done.set)
        return _HostEvent(section, self._work_off_late if self._order == "when_awaited" else None)

    def capture(self, work: Work) -> CapturedWork:
        """See `Device.capture`."""
        if self._recorded is not None:
            raise SlipwayError("work is being captured already")
        recorded = self._recorded = []
        try:
            work()
        finally:
            self._recorded = None
        return _Captured(self, recorded)

    def close(self) -> None:
        """Does what is queued, and forgets all memory."""
        self._work_off_late()
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        self._allocated.clear()
        self._staging.clear()
        self._starts, self._staging_starts, self._used = [], [], 0

    def _put(self, work: Work) -> None:
        if self._order == "at_once":
            work()
        elif self._order == "when_awaited":
            self._late.append(work)
        else:
            self._queue.put(work)

    def _work_off(self) -> None:
        while (work := self._queue.get()) is not None:
            work()

    def _work_off_late(self) -> None:
        """Everything up to now, although an event may be in its middle: later work may not rely on being late."""
        late, self._late = self._late, []
        for work in late:
            work()

    def _memory(self, address: int, count: int) -> Bytes:
        return _within(self._allocated, self._starts, address, count, "an allocation")

    def _staged(self, array: npt.NDArray[Any]) -> Bytes:
        if not array.flags.c_contiguous:
            raise SlipwayError(f"an array of strides {array.strides} is copied; it must be contiguous")
        return _within(self._staging, self._staging_starts, array.ctypes.data, array.nbytes, "staging memory")


class HostKernels:
    """Emulated kernels whose calls are queued on a `HostDevice`, as a stream would do with a GPU's."""

    def __init__(self, kernels: Kernels, device: HostDevice) -> None:
        self._kernels = kernels
        self._device = device

    def workspace_bytes(
        self, operator: str, tensors: Mapping[str, KernelTensor], attributes: Mapping[str, float]
    ) -> int:
        """See `KernelLibrary.workspace_bytes`."""
        return self._kernels.workspace_bytes(operator, tensors, attributes)

    def call(
        self,
        operator: str,
        tensors: Mapping[str, KernelTensor],
        attributes: Mapping[str, float] | None = None,
        *,
        workspace: int = 0,
        workspace_bytes: int = 0,
    ) -> Enqueued:
        """See `KernelLibrary.call`."""
        call = self._kernels.call(
            operator, tensors, attributes, workspace=workspace, workspace_bytes=workspace_bytes
        )
        return _HostCall(call, self._device)


class _HostCall:
    """`Enqueued` on a `HostDevice`."""

    def __init__(self, call: Enqueued, device: HostDevice) -> None:
        self._call = call
        self._device = device

    def enqueue(self, stream: int) -> None:
        self._device.queue(lambda: self._call.enqueue(stream))


class _Section:
    """The work between two events: whether it is done, and what it raised first."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: Exception | None = None

    def guarded(self, work: Work) -> Work:
        def run() -> None:
            try:
                work()
            except Exception as error:  # raised by whoever waits
                self.error = self.error or error

        return run


class _HostEvent:
    """`Event` behind a section of work."""

    def __init__(self, section: _Section, work_off: Work | None) -> None:
        self._section = section
        self._work_off = work_off

    def wait(self) -> None:
        if self._work_off is not None and not self._section.done.is_set():
            self._work_off()
        self._section.done.wait()
        error = self._section.error
        if error is not None:
            raise (
                error
                if isinstance(error, SlipwayError)
                else SlipwayError(f"work on the device failed: {error!r}")
            ) from error


class _Captured:
    """`CapturedWork`: the recorded callables, queued again at each launch."""

    def __init__(self, device: HostDevice, recorded: list[Work]) -> None:
        self._device = device
        self._recorded = recorded

    def launch(self) -> None:
        for work in self._recorded:
            self._device.queue(work)


def _aligned(count: int) -> Bytes:
    raw = np.empty(count + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count]


def _within(held: dict[int, Bytes], starts: list[int], address: int, count: int, what: str) -> Bytes:
    place = bisect_right(starts, address) - 1
    if place >= 0:
        offset = address - starts[place]
        memory = held[starts[place]]
        if offset + count <= len(memory):
            return memory[offset : offset + count]
    raise SlipwayError(f"{count} bytes at {address:#x} do not lie in {what}")
