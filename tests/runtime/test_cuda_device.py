"""`CudaDevice` without a GPU: which calls it makes, and cuda-python's own signatures where that is installed."""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import Any

import numpy as np
import pytest

from model_repo.runtime import cuda_device
from model_repo.runtime.cuda_device import CudaDevice
from model_repo.runtime.device import Device, OutOfMemory
from model_repo.runtime.errors import BadInput, SlipwayError
from tests.runtime.cuda_calls import CALLS, CONSTANTS, CudaCalls

STREAM = 0x51


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> CudaCalls:
    calls = CudaCalls(host=np.zeros(64, np.uint8))
    monkeypatch.setattr(cuda_device, "_runtime", lambda: calls)
    return calls


def installed() -> bool:
    try:
        return importlib.util.find_spec("cuda.bindings.runtime") is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.skipif(not installed(), reason="cuda-python, which only a GPU's users need, is not installed")
def test_the_calls_are_those_of_cuda_python() -> None:
    cuda = importlib.import_module("cuda.bindings.runtime")
    for name, parameters in CALLS.items():
        line = getattr(cuda, name).__doc__.strip().splitlines()[0]
        given = re.fullmatch(rf"{name}\((.*)\)", line)
        assert given is not None, line
        found = [part.partition(":")[0].split()[-1] for part in given[1].split(", ") if part]
        assert found == list(parameters), line
    for enum, values in CONSTANTS.items():
        holder = getattr(cuda, enum) if enum else cuda
        assert {name: int(getattr(holder, name)) for name in values} == values


@pytest.mark.skipif(not installed(), reason="cuda-python, which only a GPU's users need, is not installed")
def test_without_a_gpu_the_real_package_says_why() -> None:
    cuda = importlib.import_module("cuda.bindings.runtime")
    if not int(cuda.cudaGetDeviceCount()[0]):
        pytest.skip("there is a GPU here")
    with pytest.raises(BadInput, match=r"no NVIDIA GPU can be used here: cudaError\w+ \("):
        CudaDevice()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(cuda_device.importlib, "import_module", missing)
    with pytest.raises(BadInput, match=r"No module named 'cuda.bindings.runtime'\): pip install cuda-python"):
        CudaDevice()


def test_no_gpu_is_told_in_the_drivers_words(cuda: CudaCalls) -> None:
    cuda.fails["cudaGetDeviceCount"] = 35
    with pytest.raises(
        BadInput, match=r"no NVIDIA GPU .*: cudaErrorOfATest \(its explanation\)\. This engine"
    ):
        CudaDevice()
    cuda.fails.clear()
    cuda.results["cudaGetDeviceCount"] = (0,)
    with pytest.raises(BadInput, match="CUDA sees none"):
        CudaDevice()


def test_commands_go_to_its_own_stream(cuda: CudaCalls) -> None:
    device: Device = CudaDevice()
    assert isinstance(device, CudaDevice)
    assert device.compute_capability == (9, 9)
    assert device.stream == STREAM
    staging = device.staging(48)
    assert (staging.nbytes, staging.dtype) == (48, np.uint8)
    address = device.allocate(512)
    cuda.said()
    device.upload(address, staging[8:16])
    device.download(staging[:4], address + 4)
    device.copy(1, 2, 3)
    device.zero(address, 16)
    device.record().wait()
    host = staging.ctypes.data
    assert cuda.said() == [
        ("cudaMemcpyAsync", address, host + 8, 8, 1, STREAM),
        ("cudaMemcpyAsync", host, address + 4, 4, 2, STREAM),
        ("cudaMemcpyAsync", 1, 2, 3, 3, STREAM),
        ("cudaMemsetAsync", address, 0, 16, STREAM),
        ("cudaEventRecord", 0xE0, STREAM),
        ("cudaEventSynchronize", 0xE0),
    ]
    assert device.memory == (1000, 5000)


def test_memory_that_is_not_there_is_told_with_its_bytes(cuda: CudaCalls) -> None:
    device = CudaDevice()
    cuda.fails["cudaMalloc"] = 2
    with pytest.raises(OutOfMemory) as raised:
        device.allocate(7000)
    assert (raised.value.needed, raised.value.free) == (7000, 1000)
    cuda.fails["cudaMalloc"] = 700
    with pytest.raises(SlipwayError, match=r"does not allocate 7000 bytes: cudaErrorOfATest"):
        device.allocate(7000)


def test_work_is_captured_as_a_graph(cuda: CudaCalls) -> None:
    device = CudaDevice()
    cuda.said()
    seen: list[bool] = []
    captured = device.capture(lambda: (seen.append(device.capturing), device.zero(0x7000, 4))[1])
    captured.launch()
    assert (seen, device.capturing) == ([True], False)
    assert cuda.said() == [
        ("cudaStreamBeginCapture", STREAM, 1),
        ("cudaMemsetAsync", 0x7000, 0, 4, STREAM),
        ("cudaStreamEndCapture", STREAM),
        ("cudaGraphInstantiate", 0x91, 0),
        ("cudaGraphDestroy", 0x91),
        ("cudaGraphLaunch", 0x92, STREAM),
    ]


def test_a_capture_that_fails_leaves_the_stream_usable(cuda: CudaCalls) -> None:
    device = CudaDevice()

    def work() -> None:
        raise SlipwayError("the engine refuses")

    cuda.said()
    with pytest.raises(SlipwayError, match="the engine refuses"):
        device.capture(work)
    assert cuda.said()[-1] == ("cudaStreamEndCapture", STREAM)
    assert not device.capturing
    cuda.fails["cudaStreamEndCapture"] = 901
    with pytest.raises(SlipwayError, match="does not capture this work: cudaErrorOfATest"):
        device.capture(lambda: None)


def test_what_failed_on_the_gpu_is_told_by_who_waits(cuda: CudaCalls) -> None:
    device = CudaDevice()
    event = device.record()
    cuda.fails["cudaEventSynchronize"] = 700
    with pytest.raises(SlipwayError, match=r"does not compute what was queued: cudaErrorOfATest \(its expl"):
        event.wait()


def test_everything_is_given_back(cuda: CudaCalls) -> None:
    device = CudaDevice()
    device.staging(8)
    kept = device.allocate(8)
    device.capture(lambda: None)
    cuda.said()
    device.close()
    names = [name for name, *_ in cuda.said()]
    assert names[0] == "cudaStreamSynchronize"
    assert names.count("cudaEventDestroy") == cuda_device.EVENTS
    assert {"cudaGraphExecDestroy", "cudaFree", "cudaFreeHost"} < set(names)
    assert names[-1] == "cudaStreamDestroy"
    with pytest.raises(KeyError):
        device.free(kept)
