"""An engine on the host's memory as a device: a graph that ONNX Runtime's CPU runs, with an engine's manners."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from model_repo.runtime.device_engine import DeviceTensor
from model_repo.runtime.errors import BadInput, SlipwayError
from model_repo.runtime.host_device import HostDevice

DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}

Ranges = Mapping[str, Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]]
"""Of each profile's inputs: least and most shape."""


class Queued(NamedTuple):
    """What one call of `enqueue` took along."""

    profile: str
    shapes: dict[str, tuple[int, ...]]
    addresses: dict[str, int]


class HostEngine:
    """`DeviceEngine` over a session. Outputs are written where they are bound; `calls` counts what was run."""

    def __init__(self, device: HostDevice, graph: Path, ranges: Ranges) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._device, self._ranges = device, ranges
        self._session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._inputs = {value.name: DTYPES[value.type] for value in self._session.get_inputs()}
        self._outputs = {value.name: DTYPES[value.type] for value in self._session.get_outputs()}
        self._profile = ""
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self.calls: list[Queued] = []
        self.queued = 0

    @property
    def tensors(self) -> Mapping[str, DeviceTensor]:
        def described(value: Any, role: Any) -> DeviceTensor:
            shape = tuple(size if isinstance(size, int) else None for size in value.shape)
            return DeviceTensor(value.name, role, np.dtype(DTYPES[value.type]).name, shape)

        given = [described(value, "input") for value in self._session.get_inputs()]
        made = [described(value, "output") for value in self._session.get_outputs()]
        return {tensor.name: tensor for tensor in (*given, *made)}

    @property
    def profiles(self) -> tuple[str, ...]:
        return tuple(self._ranges)

    @property
    def workspace_bytes(self) -> int:
        return 0

    def use_profile(self, name: str, stream: int) -> None:
        self._profile = name
        self._shapes = {}

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        least, most = self._ranges[self._profile][name]
        if len(shape) != len(least) or not all(
            a <= b <= c for a, b, c in zip(least, shape, most, strict=True)
        ):
            raise BadInput(f"input {name} has shape {shape}; profile {self._profile} holds {least} to {most}")
        self._shapes[name] = shape

    def set_address(self, name: str, address: int) -> None:
        assert address % 256 == 0, f"{name} at {address:#x}"
        self._addresses[name] = address

    def enqueue(self, stream: int) -> None:
        if missing := {*self._inputs} - {*self._shapes}:
            raise SlipwayError(f"no shape of {missing}")
        call = Queued(self._profile, dict(self._shapes), dict(self._addresses))
        self.queued += 1
        self._device.queue(lambda: self._run(call))

    def _run(self, call: Queued) -> None:
        feeds = {
            name: self._device.view(call.addresses[name], call.shapes[name], dtype)
            for name, dtype in self._inputs.items()
        }
        for name, result in zip(self._outputs, self._session.run([*self._outputs], feeds), strict=True):
            self._device.view(call.addresses[name], result.shape, result.dtype)[...] = result
        self.calls.append(call)
