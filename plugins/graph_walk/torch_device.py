"""A GPU for the runtime by nothing but torch: its caching allocator, one stream, pinned memory, events, CUDA graphs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model_repo.runtime.device import CapturedWork, Event, Memory, OutOfMemory
from model_repo.runtime.errors import SlipwayError

from .addresses import bytes_at

_cuda: Any = torch.cuda


class TorchDevice:
    """`model_repo.runtime.device.Device` over torch.cuda.

    Captured work shares one pool of memory, which its launches use one after the other; what it leaves for the next
    launch has to lie in allocations of this device. `seconds_waited`: what the host spent waiting for events.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = _cuda.Stream(device)
        self._pool = _cuda.graph_pool_handle()
        self._allocated: dict[int, Tensor] = {}
        self._views: dict[tuple[int, int], Tensor] = {}
        self.seconds_waited = 0.0
        with self._on_stream():
            # cuBLAS makes its handle and its workspace at its first product on a stream, which no capture may be.
            for dtype in (torch.float16, torch.bfloat16, torch.float32):
                ones = torch.ones(16, 16, dtype=dtype, device=device)
                torch.matmul(ones, ones)
        self._stream.synchronize()

    @property
    def stream(self) -> int:
        """See `Device.stream`."""
        return int(self._stream.cuda_stream)

    @property
    def memory(self) -> Memory:
        """See `Device.memory`; what torch's allocator keeps and does not use counts as free."""
        free, total = _cuda.mem_get_info(self._device)
        kept = _cuda.memory_reserved(self._device) - _cuda.memory_allocated(self._device)
        return Memory(free + kept, total)

    def allocate(self, count: int) -> int:
        """See `Device.allocate`; the allocator's addresses are multiples of 512."""
        try:
            with self._on_stream():
                tensor = torch.empty(max(count, 1), dtype=torch.uint8, device=self._device)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(count, self.memory.free) from error
        self._allocated[tensor.data_ptr()] = tensor
        return tensor.data_ptr()

    def free(self, address: int) -> None:
        """See `Device.free`."""
        del self._allocated[address]
        self._views.clear()

    def staging(self, count: int) -> npt.NDArray[np.uint8]:
        """See `Device.staging`."""
        array: npt.NDArray[np.uint8] = torch.empty(count, dtype=torch.uint8, pin_memory=True).numpy()
        return array

    def upload(self, address: int, source: npt.NDArray[Any]) -> None:
        """See `Device.upload`."""
        with self._on_stream():
            self._bytes(address, source.nbytes).copy_(_flat(source), non_blocking=True)

    def download(self, target: npt.NDArray[Any], address: int) -> None:
        """See `Device.download`."""
        with self._on_stream():
            _flat(target).copy_(self._bytes(address, target.nbytes), non_blocking=True)

    def copy(self, target: int, source: int, count: int) -> None:
        """See `Device.copy`."""
        with self._on_stream():
            self._bytes(target, count).copy_(self._bytes(source, count), non_blocking=True)

    def zero(self, address: int, count: int) -> None:
        """See `Device.zero`."""
        with self._on_stream():
            self._bytes(address, count).zero_()

    def record(self) -> Event:
        """See `Device.record`."""
        event = _cuda.Event()
        event.record(self._stream)
        return _Event(self, event)

    def capture(self, work: Callable[[], None]) -> CapturedWork:
        """See `Device.capture`. It waits for what is queued."""
        graph = _cuda.CUDAGraph()
        try:
            # Other threads may use the device meanwhile, such as one that allocates pinned memory.
            with _cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            raise SlipwayError(f"the work cannot be captured as a CUDA graph: {error}") from error
        return _Captured(self, graph)

    def close(self) -> None:
        """See `Device.close`."""
        self._stream.synchronize()
        self._views.clear()
        self._allocated.clear()

    def launch(self, graph: Any) -> None:
        """Queues a captured graph."""
        with self._on_stream():
            graph.replay()

    def _on_stream(self) -> Any:
        return _cuda.stream(self._stream)

    def _bytes(self, address: int, count: int) -> Tensor:
        view = self._views.get((address, count))
        if view is None:
            view = self._views[address, count] = bytes_at(address, count, self._device)
        return view


class _Event:
    def __init__(self, device: TorchDevice, event: Any) -> None:
        self._device = device
        self._event = event

    def wait(self) -> None:
        begun = time.perf_counter()
        try:
            self._event.synchronize()
        except RuntimeError as error:
            raise SlipwayError(f"work on the GPU failed: {error}") from error
        finally:
            self._device.seconds_waited += time.perf_counter() - begun


class _Captured:
    def __init__(self, device: TorchDevice, graph: Any) -> None:
        self._device = device
        self._graph = graph

    def launch(self) -> None:
        self._device.launch(self._graph)


def _flat(array: npt.NDArray[Any]) -> Tensor:
    """The bytes of a contiguous array, as a tensor over the same memory."""
    return torch.from_numpy(array.reshape(-1).view(np.uint8))
