"""An NVIDIA GPU as the device of executors, by cuda-python's bindings of the CUDA runtime.

The GPU is the first one that the process sees: CUDA_VISIBLE_DEVICES chooses it. Not run on a GPU yet; names and
signatures are held to those of the real package.
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .device import CapturedWork, Event, Memory, OutOfMemory
from .errors import BadInput, SlipwayError

EVENTS = 16
"""Events that are recorded in turn. One that is recorded again before it was waited for stands for a later place in
the stream: who waits for it waits longer, and never too short."""


class CudaDevice:
    """One GPU with one stream. Raises BadInput where cuda-python is not installed or no GPU can be used.

    compute_capability: major and minor. capturing: whether `capture` runs.
    """

    def __init__(self) -> None:
        self._cuda = cuda = _runtime()
        error, count = cuda.cudaGetDeviceCount()
        if int(error) or not count:
            what = _words(cuda, error) if int(error) else "CUDA sees none"
            raise BadInput(
                f"no NVIDIA GPU can be used here: {what}. This engine runs where there is one, with its driver"
            )
        attributes = cuda.cudaDeviceAttr
        self.compute_capability: tuple[int, int] = (
            self._do(
                "say what it is", cuda.cudaDeviceGetAttribute(attributes.cudaDevAttrComputeCapabilityMajor, 0)
            ),
            self._do(
                "say what it is", cuda.cudaDeviceGetAttribute(attributes.cudaDevAttrComputeCapabilityMinor, 0)
            ),
        )
        self._stream = self._do("make a stream", cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))
        self._events = [
            self._do("make an event", cuda.cudaEventCreateWithFlags(cuda.cudaEventDisableTiming))
            for _ in range(EVENTS)
        ]
        self._recorded = 0
        self.capturing = False
        self._allocated: set[int] = set()
        self._pinned: list[int] = []
        self._graphs: list[Any] = []
        self._to_device = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._to_host = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._on_device = cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice

    @property
    def stream(self) -> int:
        """See `Device.stream`."""
        return int(self._stream)

    @property
    def memory(self) -> Memory:
        """See `Device.memory`; other processes on the GPU count too."""
        error, free, total = self._cuda.cudaMemGetInfo()
        self._do("say what memory is free", (error,))
        return Memory(int(free), int(total))

    def allocate(self, count: int) -> int:
        """See `Device.allocate`."""
        error, address = self._cuda.cudaMalloc(count)
        if int(error) == int(self._cuda.cudaError_t.cudaErrorMemoryAllocation):
            raise OutOfMemory(count, self.memory.free)
        self._do(f"allocate {count} bytes", (error,))
        self._allocated.add(int(address))
        return int(address)

    def free(self, address: int) -> None:
        """See `Device.free`."""
        self._allocated.remove(address)
        self._do("free memory", self._cuda.cudaFree(address))

    def staging(self, count: int) -> npt.NDArray[np.uint8]:
        """See `Device.staging`. It is given back by `close` alone."""
        address = int(
            self._do(
                f"lock {count} bytes of the host's memory",
                self._cuda.cudaHostAlloc(max(count, 1), self._cuda.cudaHostAllocDefault),
            )
        )
        self._pinned.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(address))

    def upload(self, address: int, source: npt.NDArray[Any]) -> None:
        """See `Device.upload`."""
        self._copy(address, source.ctypes.data, source.nbytes, self._to_device)

    def download(self, target: npt.NDArray[Any], address: int) -> None:
        """See `Device.download`."""
        self._copy(target.ctypes.data, address, target.nbytes, self._to_host)

    def copy(self, target: int, source: int, count: int) -> None:
        """See `Device.copy`."""
        self._copy(target, source, count, self._on_device)

    def zero(self, address: int, count: int) -> None:
        """See `Device.zero`."""
        self._do("fill memory", self._cuda.cudaMemsetAsync(address, 0, count, self._stream))

    def record(self) -> Event:
        """See `Device.record`."""
        event = self._events[self._recorded % EVENTS]
        self._recorded += 1
        self._do("record an event", self._cuda.cudaEventRecord(event, self._stream))
        return _CudaEvent(self, event)

    def capture(self, work: Callable[[], None]) -> CapturedWork:
        """See `Device.capture`: a CUDA graph."""
        cuda = self._cuda
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._do("begin to capture", cuda.cudaStreamBeginCapture(self._stream, mode))
        self.capturing = True
        try:
            work()
        except BaseException:
            cuda.cudaStreamEndCapture(self._stream)  # the stream runs again; what was captured is of no use
            raise
        finally:
            self.capturing = False
        graph = self._do("capture this work", cuda.cudaStreamEndCapture(self._stream))
        try:
            made = self._do("make captured work ready", cuda.cudaGraphInstantiate(graph, 0))
        finally:
            cuda.cudaGraphDestroy(graph)
        self._graphs.append(made)
        return _CudaGraph(self, made)

    def close(self) -> None:
        """See `Device.close`. Nothing of it may be used afterwards."""
        cuda = self._cuda
        self._do("finish its work", cuda.cudaStreamSynchronize(self._stream))
        for graph in self._graphs:
            cuda.cudaGraphExecDestroy(graph)
        for address in self._allocated:
            cuda.cudaFree(address)
        for address in self._pinned:
            cuda.cudaFreeHost(address)
        for event in self._events:
            cuda.cudaEventDestroy(event)
        cuda.cudaStreamDestroy(self._stream)
        for held in (self._graphs, self._pinned, self._events):
            held.clear()
        self._allocated.clear()

    def launch(self, graph: Any) -> None:
        """Queues a graph that `capture` made."""
        self._do("launch captured work", self._cuda.cudaGraphLaunch(graph, self._stream))

    def wait(self, event: Any) -> None:
        """Waits for an event that `record` made. Raises SlipwayError in CUDA's words when work before it failed."""
        self._do("compute what was queued", self._cuda.cudaEventSynchronize(event))

    def _copy(self, target: int, source: int, count: int, kind: Any) -> None:
        self._do(f"copy {count} bytes", self._cuda.cudaMemcpyAsync(target, source, count, kind, self._stream))

    def _do(self, what: str, result: tuple[Any, ...]) -> Any:
        """The value of a call, whose result is its error code and perhaps a value."""
        if int(result[0]):
            raise SlipwayError(f"the GPU does not {what}: {_words(self._cuda, result[0])}")
        return result[1] if len(result) > 1 else None


class _CudaEvent:
    """`Event`."""

    def __init__(self, device: CudaDevice, event: Any) -> None:
        self._device = device
        self._event = event

    def wait(self) -> None:
        self._device.wait(self._event)


class _CudaGraph:
    """`CapturedWork`."""

    def __init__(self, device: CudaDevice, graph: Any) -> None:
        self._device = device
        self._graph = graph

    def launch(self) -> None:
        self._device.launch(self._graph)


def _runtime() -> Any:
    """cuda-python's module of the CUDA runtime. Raises BadInput where it is not installed."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise BadInput(
            f"engines on a GPU need cuda-python, which cannot be imported ({error}): pip install cuda-python"
        ) from error


def _words(cuda: Any, error: Any) -> str:
    """An error code as CUDA calls and explains it."""
    name, text = (call(error)[1] for call in (cuda.cudaGetErrorName, cuda.cudaGetErrorString))
    return f"{name.decode()} ({text.decode()})"
