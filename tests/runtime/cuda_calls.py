"""CUDA's runtime as cuda-python binds it, without a GPU: calls are recorded, checked in number, and answered."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

CALLS = {
    "cudaDeviceGetAttribute": ("attr", "device"),
    "cudaEventCreateWithFlags": ("flags",),
    "cudaEventDestroy": ("event",),
    "cudaEventRecord": ("event", "stream"),
    "cudaEventSynchronize": ("event",),
    "cudaFree": ("devPtr",),
    "cudaFreeHost": ("ptr",),
    "cudaGetDeviceCount": (),
    "cudaGetErrorName": ("error",),
    "cudaGetErrorString": ("error",),
    "cudaGraphDestroy": ("graph",),
    "cudaGraphExecDestroy": ("graphExec",),
    "cudaGraphInstantiate": ("graph", "flags"),
    "cudaGraphLaunch": ("graphExec", "stream"),
    "cudaHostAlloc": ("size", "flags"),
    "cudaMalloc": ("size",),
    "cudaMemGetInfo": (),
    "cudaMemcpyAsync": ("dst", "src", "count", "kind", "stream"),
    "cudaMemsetAsync": ("devPtr", "value", "count", "stream"),
    "cudaStreamBeginCapture": ("stream", "mode"),
    "cudaStreamCreateWithFlags": ("flags",),
    "cudaStreamDestroy": ("stream",),
    "cudaStreamEndCapture": ("stream",),
    "cudaStreamSynchronize": ("stream",),
}
"""Parameters of each function, as cuda-bindings 13.5 names them."""
CONSTANTS = {
    "cudaDeviceAttr": {
        "cudaDevAttrComputeCapabilityMajor": 75,
        "cudaDevAttrComputeCapabilityMinor": 76,
    },
    "cudaError_t": {"cudaErrorMemoryAllocation": 2},
    "cudaMemcpyKind": {
        "cudaMemcpyHostToDevice": 1,
        "cudaMemcpyDeviceToHost": 2,
        "cudaMemcpyDeviceToDevice": 3,
    },
    "cudaStreamCaptureMode": {"cudaStreamCaptureModeThreadLocal": 1},
    "": {"cudaEventDisableTiming": 2, "cudaHostAllocDefault": 0, "cudaStreamNonBlocking": 1},
}
"""Values by the enum that holds them; "": of the module."""


class CudaCalls(SimpleNamespace):
    """Stands in for `cuda.bindings.runtime`. results: what calls give behind their error code, by name.

    fails: error codes of calls. host: an array that cudaHostAlloc gives the address of.
    """

    def __init__(self, host: Any = None, **results: Any) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []
        self.fails: dict[str, int] = {}
        self.results: dict[str, Any] = {
            "cudaGetDeviceCount": (1,),
            "cudaMemGetInfo": (1000, 5000),
            "cudaMalloc": (0x7000,),
            "cudaStreamCreateWithFlags": (0x51,),
            "cudaEventCreateWithFlags": (0xE0,),
            "cudaStreamEndCapture": (0x91,),
            "cudaGraphInstantiate": (0x92,),
            "cudaHostAlloc": (0 if host is None else host.ctypes.data,),
            "cudaGetErrorName": (b"cudaErrorOfATest",),
            "cudaGetErrorString": (b"its explanation",),
            "cudaDeviceGetAttribute": (9,),
            **results,
        }
        for name in CALLS:
            setattr(self, name, lambda *given, name=name: self._call(name, given))
        for enum, values in CONSTANTS.items():
            vars(self).update(values if not enum else {enum: SimpleNamespace(**values)})

    def _call(self, name: str, given: tuple[Any, ...]) -> tuple[Any, ...]:
        assert len(given) == len(CALLS[name]), f"{name}{given}: CUDA's takes {CALLS[name]}"
        self.calls.append((name, *given))
        error = self.fails.get(name, 0)
        return (error, *(self.results.get(name, ()) if not error else (None,)))

    def said(self) -> list[tuple[Any, ...]]:
        """The calls since the last time that this was asked."""
        calls, self.calls = self.calls, []
        return calls
