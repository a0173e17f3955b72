"""Engines on a device that compute in one call: inputs up, one step, outputs down. Encoders and named tensors."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .contract import EngineSpec
from .device import Device
from .device_engine import DeviceEngine
from .errors import BadInput

Array = npt.NDArray[Any]
Sizes = tuple[int | str, ...]


class DeviceSession:
    """A `TensorSession` over an engine with one profile. Calls from several threads are computed one after the other.

    most_rows: how many entries of axis 0 the profile takes; longer inputs are computed in pieces where the engine is of
    texts or `batched`. None: no pieces. Raises BadInput for an engine whose outputs' sizes its inputs do not decide.
    """

    def __init__(
        self, device: Device, engine: DeviceEngine, spec: EngineSpec, most_rows: int | None = None
    ) -> None:
        self._device, self._engine = device, engine
        self._inputs, self._outputs = _input_sizes(spec), _output_sizes(spec)
        known = {size for sizes in self._inputs.values() for size in sizes}
        for name, sizes in self._outputs.items():
            for size in sizes:
                if isinstance(size, str) and size not in known:
                    raise BadInput(
                        f"the output {name!r} of engine {spec.name!r} has a size {size!r} that the values decide, "
                        f"which target {spec.target!r} does not run; build for target 'onnxruntime'"
                    )
        joined = spec.kind == "encoder" or spec.batched
        self._most_rows = most_rows if joined else None
        self._memory: dict[str, tuple[int, npt.NDArray[np.uint8]]] = {}
        self._lock = threading.Lock()
        engine.use_profile(engine.profiles[0], device.stream)

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        """See `TensorSession.run`. Raises BadInput for shapes that the engine was not built for."""
        rows = next(iter(inputs.values())).shape[0] if self._most_rows else 0
        with self._lock:
            if self._most_rows is None or rows <= self._most_rows:
                return self._compute(outputs, inputs)
            pieces = [
                self._compute(
                    outputs, {name: given[at : at + self._most_rows] for name, given in inputs.items()}
                )
                for at in range(0, rows, self._most_rows)
            ]
        return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]

    def _compute(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        sizes: dict[str, int] = {}
        for name, given in inputs.items():
            sizes |= {
                size: count
                for size, count in zip(self._inputs[name], given.shape, strict=True)
                if isinstance(size, str)
            }
            address, staged = self._room(name, given.nbytes)
            staged[: given.nbytes].view(given.dtype)[:] = given.reshape(-1)
            self._device.upload(address, staged[: given.nbytes])
            self._engine.set_shape(name, given.shape)
        results: dict[str, tuple[tuple[int, ...], npt.NDArray[np.uint8], int]] = {}
        for name, wanted in self._outputs.items():
            shape = tuple(size if isinstance(size, int) else sizes[size] for size in wanted)
            count = math.prod(shape) * np.dtype(self._engine.tensors[name].dtype).itemsize
            address, staged = self._room(name, count)
            results[name] = shape, staged[:count], address
        for name, (address, _) in self._memory.items():
            self._engine.set_address(name, address)
        self._engine.enqueue(self._device.stream)
        for name in outputs:
            self._device.download(results[name][1], results[name][2])
        self._device.record().wait()
        return [
            results[name][1].view(self._engine.tensors[name].dtype).reshape(results[name][0]).copy()
            for name in outputs
        ]

    def _room(self, name: str, count: int) -> tuple[int, npt.NDArray[np.uint8]]:
        """Memory of at least `count` bytes for a tensor, on the device and to stage it; it only grows."""
        held = self._memory.get(name)
        if held is not None and len(held[1]) >= count:
            return held
        if held is not None:
            self._device.free(held[0])
        size = 1 << max(count - 1, 255).bit_length()
        self._memory[name] = self._device.allocate(size), self._device.staging(size)
        return self._memory[name]


def _input_sizes(spec: EngineSpec) -> dict[str, Sizes]:
    """Sizes of each input: numbers, or names."""
    if spec.kind == "encoder":
        return dict.fromkeys(spec.encoder_inputs, ("batch", "length"))
    return {tensor.name: tensor.shape for tensor in spec.inputs}


def _output_sizes(spec: EngineSpec) -> dict[str, Sizes]:
    if spec.kind != "encoder":
        return {tensor.name: tensor.shape for tensor in spec.outputs}
    if spec.head.kind == "embedding":
        assert spec.hidden_size is not None, "encoders that give embeddings have it"
        return {spec.head.output: ("batch", spec.hidden_size)}
    labels = len(spec.head.labels)
    by_token: Sizes = ("batch", "length", labels)
    return {spec.head.output: by_token if spec.head.kind == "token_classification" else ("batch", labels)}
