"""TensorRT's Python package as far as the runtime uses it: it records what it is asked, and computes nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

INPUTS = {
    "input_ids": ("INT32", (-1,), [(1,), (4,), (4,)], [(1,), (16,), (16,)]),
    "key_cache_0": ("FP8", (-1, 4, 2, 8), [(1, 4, 2, 8), (9, 4, 2, 8), (9, 4, 2, 8)], None),
}
"""Type, shape, and the least, usual and largest shape in each of two profiles (None: as in the first)."""
OUTPUTS = {"logits": ("FLOAT", (-1, 64)), "key_cache_out_0": ("FP8", (-1, 4, 2, 8))}


class ILogger:
    """Its severities, and nothing else."""

    ERROR, INTERNAL_ERROR, WARNING = "error", "internal error", "warning"


class Context:
    """Records its calls; says no to those in `refused`."""

    def __init__(self, calls: list[tuple[Any, ...]], number: int, refused: set[str]) -> None:
        for name in (
            *("set_device_memory", "set_optimization_profile_async", "set_input_shape"),
            *("set_tensor_address", "execute_async_v3"),
        ):
            setattr(
                self,
                name,
                lambda *given, name=name: (calls.append((number, name, *given)), name not in refused)[1],
            )


class Engine:
    """An engine of two profiles. streamable: bytes of weights that could be streamed."""

    def __init__(self, calls: list[tuple[Any, ...]], refused: set[str], streamable: int) -> None:
        self._calls, self._refused = calls, refused
        self._contexts = 0
        self.streamable_weights_size = streamable
        self.weight_streaming_budget_v2 = 0
        self.num_optimization_profiles = 2
        self.device_memory_size_v2 = 4096
        self._names = [*INPUTS, *OUTPUTS]
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in INPUTS else "output"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name={**INPUTS, **OUTPUTS}[name][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return {**INPUTS, **OUTPUTS}[name][1]  # type: ignore[return-value]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return INPUTS[name][2 + profile_index] or INPUTS[name][2]  # type: ignore[return-value]

    def create_execution_context(self, strategy: str) -> Context:
        assert strategy == "user managed"
        self._contexts += 1
        return Context(self._calls, self._contexts - 1, self._refused)


class FakeTensorRt(SimpleNamespace):
    """The module. says: errors that it logs; loads: whether it takes the engine; plugins: and libraries of plugins."""

    def __init__(
        self, version: str = "11.4.0", *, loads: bool = True, plugins: bool = True, streamable: int = 0
    ) -> None:
        super().__init__(__name__="tensorrt", __version__=version, ILogger=ILogger)
        self.calls: list[tuple[Any, ...]] = []
        self.refused: set[str] = set()
        self.says: list[str] = []
        self.plan = b""
        self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
        self.TensorIOMode = SimpleNamespace(INPUT="input")
        self.Runtime = self._runtime
        self.get_plugin_registry = lambda: SimpleNamespace(load_library=self._load_library)
        self._loads, self._plugins, self._streamable = loads, plugins, streamable

    def _runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: self._deserialized(logger, plan))

    def _deserialized(self, logger: Any, plan: Any) -> Engine | None:
        self.calls.append(("deserialize", len(plan)))
        self.plan = bytes(plan)
        for words in self.says:
            logger.log(ILogger.ERROR, words)
        self.engine = Engine(self.calls, self.refused, self._streamable) if self._loads else None
        return self.engine

    def _load_library(self, path: str) -> object | None:
        self.calls.append(("load_library", path))
        return object() if self._plugins else None
