"""Engines that compute in one call: arrays by name in, arrays out, on whatever the engine is made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from .contract import CONVOLUTIONS, EngineSpec
from .executed import check_machine

Array = npt.NDArray[Any]


class TensorSession(Protocol):
    """One loaded engine. Calls are independent."""

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> Sequence[Array]:
        """The outputs asked for. Raises whatever the engine raises."""


def tensor_session(folder: Path, spec: EngineSpec, threads: int) -> TensorSession:
    """The engine in `folder`, an encoder's or one of named tensors.

    Raises BadInput where the machine or a package does not suffice, and when the engine is refused.
    """
    check_machine(spec.target, f"the engine {folder / spec.graph}")
    loaded: TensorSession
    if spec.target == "onnxruntime-cuda":
        from .onnxruntime_cuda_executor import cuda_session

        loaded = cuda_session(folder / spec.graph)
    elif spec.target.startswith("tensorrt"):
        from .tensorrt_loading import tensorrt_session

        loaded = tensorrt_session(folder, spec)
    else:
        from .onnxruntime_executor import session

        plugin = folder / spec.plugin if spec.plugin else None
        loaded = session(folder / spec.graph, plugin, threads, convolutions=CONVOLUTIONS in spec.features)
    return loaded
