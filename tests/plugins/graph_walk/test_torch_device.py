"""The GPU by torch: what it asks of torch.cuda, and how failures are said; with the CPU's memory in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from model_repo.runtime.device import ALIGNMENT, Memory, OutOfMemory
from model_repo.runtime.errors import SlipwayError
from plugins.graph_walk import torch_device
from plugins.graph_walk.torch_device import TorchDevice

CPU = torch.device("cpu")


class FakeCuda:
    """What is used of torch.cuda. Everything is done at once, but what is captured."""

    def __init__(self) -> None:
        self.current: list[str] = []
        self.capturing = False
        self.failing = False
        self.captures: list[dict[str, Any]] = []
        self.replayed: list[str] = []
        fake = self

        class Stream:
            cuda_stream = 77

            def __init__(self, device: torch.device) -> None:
                self.device = device

            def synchronize(self) -> None:
                fake.fail()

        class Event:
            def record(self, stream: Stream) -> None:
                assert stream.cuda_stream == 77

            def synchronize(self) -> None:
                fake.fail()

        class Graph:
            def replay(self) -> None:
                assert fake.current, "not on the device's stream"
                fake.replayed.append("graph")

        self.Stream, self.Event, self.CUDAGraph = Stream, Event, Graph

    def fail(self) -> None:
        if self.failing:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def graph_pool_handle(self) -> str:
        return "pool"

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return 1000, 4000

    def memory_reserved(self, device: torch.device) -> int:
        return 700

    def memory_allocated(self, device: torch.device) -> int:
        return 500

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.current.append("stream")
        yield
        self.current.pop()

    @contextmanager
    def graph(self, graph: Any, **settings: Any) -> Iterator[None]:
        self.captures.append(settings)
        self.fail()
        self.capturing = True
        yield
        self.capturing = False


@pytest.fixture(name="cuda")
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    made = FakeCuda()
    monkeypatch.setattr(torch_device, "_cuda", made)
    return made


@pytest.fixture(name="device")
def device_over_the_cpu(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> TorchDevice:
    empty = torch.empty

    def unpinned(*sizes: Any, pin_memory: bool = False, **more: Any) -> torch.Tensor:
        return empty(*sizes, **more)

    monkeypatch.setattr(torch, "empty", unpinned)
    return TorchDevice(CPU)


def test_bytes_go_up_over_and_down(device: TorchDevice) -> None:
    first, second = device.allocate(64), device.allocate(64)
    staged = device.staging(64)
    staged.view(np.float16)[:] = np.arange(32)
    device.upload(first, staged.view(np.float16).reshape(4, 8))
    device.copy(second, first, 64)
    device.zero(second + 8, 16)
    found = device.staging(64)
    device.download(found, second)
    assert found.view(np.float16).tolist() == [*range(4), *[0] * 8, *range(12, 32)]
    device.free(first)
    with pytest.raises(KeyError):
        device.free(first)
    device.close()


def test_memory_counts_what_torch_keeps_unused(device: TorchDevice) -> None:
    assert device.memory == Memory(free=1200, total=4000)
    assert device.stream == 77
    assert ALIGNMENT <= 512  # the caching allocator's addresses are multiples of that


def test_no_memory_is_said_with_what_is_free(device: TorchDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", refused)
    with pytest.raises(OutOfMemory, match="5000 bytes of device memory were asked for and 1200 are free"):
        device.allocate(5000)


def test_captured_work_is_launched_on_the_stream(device: TorchDevice, cuda: FakeCuda) -> None:
    seen: list[bool] = []
    captured = device.capture(lambda: seen.append(cuda.capturing))
    assert (seen, cuda.replayed) == ([True], [])
    (settings,) = cuda.captures
    assert (settings["pool"], settings["capture_error_mode"]) == ("pool", "thread_local")
    captured.launch()
    captured.launch()
    assert (seen, cuda.replayed) == ([True], ["graph", "graph"])


def test_failures_are_said_in_the_drivers_words(device: TorchDevice, cuda: FakeCuda) -> None:
    event = device.record()
    event.wait()
    waited = device.seconds_waited
    assert waited > 0
    cuda.failing = True
    with pytest.raises(SlipwayError, match="work on the GPU failed: CUDA error: an illegal memory access"):
        event.wait()
    assert device.seconds_waited > waited
    with pytest.raises(SlipwayError, match="the work cannot be captured as a CUDA graph: CUDA error"):
        device.capture(lambda: None)
