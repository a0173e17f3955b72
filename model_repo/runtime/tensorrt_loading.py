"""From the folder of an engine of TensorRT or TensorRT-RTX to what computes with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .built_engine import BuiltEngine
from .contract import EngineSpec
from .cuda_device import CudaDevice
from .device_session import DeviceSession
from .errors import BadInput
from .executor import Executor, LaunchingExecutor
from .kernel_library import KernelLibrary
from .linear_cache import LINEAR_CACHE
from .linear_executor import LinearExecutor
from .paged_executor import PagedExecutor
from .tensorrt_engine import TensorRtEngine

RECORD = "layers.json"
"""What the build wrote down of the engine, beside it."""

KERNELS = "libslipway_kernels.so"
"""The CUDA kernels, beside the library of plugins that calls them; they choose tokens too."""


class _Loaded(NamedTuple):
    device: CudaDevice
    engine: TensorRtEngine
    record: Mapping[str, Any]


def tensorrt_executor(folder: Path, spec: EngineSpec, num_blocks: int) -> Executor | LaunchingExecutor:
    """The executor of the decoder in `folder`. Raises BadInput where something is missing or does not fit."""
    if LINEAR_CACHE not in spec.features and spec.plugin is None:
        raise BadInput(
            f"{folder / spec.graph} was built by the plugins in Python, and is run by those in C++: build it with "
            "--plugin-library FILE, which `make plugins TENSORRT_INCLUDE=...` makes"
        )
    device, engine, _ = _load(folder, spec)
    if LINEAR_CACHE in spec.features:
        return LinearExecutor(device, engine, spec, num_blocks)
    kernels = folder / KERNELS
    executor = PagedExecutor(
        device,
        engine,
        spec,
        kernels=KernelLibrary(kernels) if kernels.is_file() else None,
        num_blocks=num_blocks,
        weight_bytes=(folder / spec.graph).stat().st_size,
    )
    executor.warm_up()
    return executor


def tensorrt_session(folder: Path, spec: EngineSpec) -> DeviceSession:
    """The engine in `folder`, an encoder's or one of named tensors. Raises BadInput as `tensorrt_executor` does."""
    device, engine, record = _load(folder, spec)
    shapes: Mapping[str, Any] = record["profiles"][engine.profiles[0]]
    first = spec.encoder_inputs[0] if spec.kind == "encoder" else spec.inputs[0].name
    return DeviceSession(device, engine, spec, most_rows=shapes[first][2][0] if shapes[first][2] else None)


def _load(folder: Path, spec: EngineSpec) -> _Loaded:
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read ({error}); build the engine again") from error
    plugins = (folder / spec.plugin,) if spec.plugin else ()
    device = CudaDevice()
    built = BuiltEngine.of_record(folder / spec.graph, record, plugins)
    return _Loaded(device, TensorRtEngine(device, built), record)
