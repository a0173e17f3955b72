"""Engines of TensorRT and TensorRT-RTX for executors on a device: the two packages have the same names.

Each profile has an execution context of its own, so that no step switches profiles. One that was captured is left as it
is, since captured work rests on it, and another takes its place. All share one workspace: they run one after the other,
in one stream. No engine has run yet; names and signatures are held to those of the real packages.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any

from .built_engine import BuiltEngine
from .cuda_device import CudaDevice
from .device_engine import DeviceTensor
from .errors import BadInput, SlipwayError
from .tensorrt_package import load_plugins, package_of
from .tensorrt_words import logger_of, not_loaded

DTYPES: Mapping[str, str] = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8e4m3fn",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""TensorRT's names of element types as ONNX's."""


class TensorRtEngine:
    """See `DeviceEngine`. Loads an engine onto `device`, and its plugins before it.

    Raises BadInput where the package, a library of plugins or the file is missing, and for an engine that does not load
    here, in TensorRT's words, with what it was built for and what is here.
    """

    def __init__(self, device: CudaDevice, built: BuiltEngine) -> None:
        trt = package_of(built)
        self._device = device
        self._logger = logger_of(trt)
        load_plugins(trt, built)
        runtime = trt.Runtime(self._logger)
        if not built.path.is_file():
            raise BadInput(f"no engine {built.path}; build it again")
        with built.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise not_loaded(built, trt.__version__, device.compute_capability, self._logger.said())
        self._runtime, self._engine = runtime, engine  # the runtime has to outlive the engine
        if engine.num_optimization_profiles != len(built.profiles):
            raise BadInput(
                f"{built.path} has {engine.num_optimization_profiles} profiles, and its record names "
                f"{', '.join(built.profiles)}; build it again"
            )
        if engine.streamable_weights_size:  # all weights stay on the device
            engine.weight_streaming_budget_v2 = engine.streamable_weights_size
        self.profiles = built.profiles
        self.tensors: Mapping[str, DeviceTensor] = {
            name: _tensor(trt, engine, name)
            for name in map(engine.get_tensor_name, range(engine.num_io_tensors))
        }
        self.workspace_bytes: int = engine.device_memory_size_v2
        self._workspace = device.allocate(max(self.workspace_bytes, 1))
        self._ranges = [
            {
                name: engine.get_tensor_profile_shape(name, index)
                for name, tensor in self.tensors.items()
                if tensor.role == "input"
            }
            for index in range(len(built.profiles))
        ]
        self._strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._contexts: list[Any] = [None for _ in built.profiles]
        self._captured: list[Any] = []
        self._shapes: list[dict[str, tuple[int, ...]]] = [{} for _ in built.profiles]
        self._addresses: dict[str, int] = {}
        self._moved: list[dict[str, int]] = [{} for _ in built.profiles]  # what a context does not know yet
        for index in range(len(built.profiles)):
            self._active = index
            self._context()
        self._active = 0
        device.record().wait()

    def use_profile(self, name: str, stream: int) -> None:
        """See `DeviceEngine.use_profile`; nothing is queued."""
        self._active = self.profiles.index(name)

    def set_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """See `DeviceEngine.set_shape`."""
        least, _, most = self._ranges[self._active][name]
        inside = len(shape) == len(least) and all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        )
        context = self._context()
        if not inside or not context.set_input_shape(name, shape):
            raise BadInput(
                f"input {name!r} has the shape {list(shape)}; profile {self.profiles[self._active]!r} of the engine "
                f"takes {list(least)} to {list(most)}. {self._logger.said()}".rstrip()
            )
        self._shapes[self._active][name] = shape

    def set_address(self, name: str, address: int) -> None:
        """See `DeviceEngine.set_address`."""
        self._addresses[name] = address
        for moved in self._moved:
            moved[name] = address

    def enqueue(self, stream: int) -> None:
        """See `DeviceEngine.enqueue`."""
        context = self._context()
        moved = self._moved[self._active]
        for name, address in moved.items():
            if not context.set_tensor_address(name, address):
                raise SlipwayError(f"the engine takes no {name!r} at {address:#x}: {self._logger.said()}")
        moved.clear()
        if not context.execute_async_v3(stream):
            raise SlipwayError(f"the engine does not run: {self._logger.said()}")
        if self._device.capturing:
            self._captured.append(context)
            self._contexts[self._active] = None

    def close(self) -> None:
        """Gives the engine's memory back, when nothing is in flight."""
        self._contexts.clear()
        self._captured.clear()
        self._engine = self._runtime = None
        self._device.free(self._workspace)

    def _context(self) -> Any:
        """The context of the profile that is used; a new one knows the shapes and addresses of the one before."""
        active = self._active
        if self._contexts[active] is None:
            context = self._engine.create_execution_context(self._strategy)
            if context is None:
                raise SlipwayError(f"the engine makes no execution context: {self._logger.said()}")
            context.set_device_memory(self._workspace, self.workspace_bytes)
            if not context.set_optimization_profile_async(active, self._device.stream):
                raise SlipwayError(f"profile {self.profiles[active]!r} cannot be used: {self._logger.said()}")
            for name, shape in self._shapes[active].items():
                context.set_input_shape(name, shape)
            self._moved[active] = dict(self._addresses)
            self._contexts[active] = context
        return self._contexts[active]


def _tensor(trt: Any, engine: Any, name: str) -> DeviceTensor:
    kind = engine.get_tensor_dtype(name).name
    shape = tuple(None if size < 0 else size for size in engine.get_tensor_shape(name))
    is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
    return DeviceTensor(name, "input" if is_input else "output", DTYPES.get(kind, kind.lower()), shape)
