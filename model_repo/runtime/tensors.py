"""Engines of named tensors: arrays in, arrays out, checked against what the engine says of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .contract import EngineSpec, TensorSpec
from .engine_files import EXAMPLE, EngineFiles
from .errors import BadInput
from .metrics import Metrics
from .tensor_session import tensor_session

Array = npt.NDArray[Any]


class TensorEngine:
    """One loaded engine of kind `tensors`. Thread-safe: calls are independent."""

    def __init__(self, folder: Path, spec: EngineSpec, threads: int) -> None:
        if spec.kind != "tensors":
            raise BadInput(
                f"engine {spec.name!r} is of kind {spec.kind}; one of named tensors is needed here"
            )
        self.spec = spec
        self.metrics = Metrics()
        self._axes = {axis.name: axis for axis in spec.axes}
        self._outputs = [output.name for output in spec.outputs]
        self._example = folder / EXAMPLE
        self._session = tensor_session(folder, spec, threads)

    @classmethod
    def load(cls, folder: Path, *, threads: int | None = None, verify: bool = True) -> TensorEngine:
        """The engine in `folder`. Raises BadInput as `Engine.load` does."""
        files = EngineFiles.read(folder, verify)
        return cls(folder, files.spec, files.spec.threads if threads is None else threads)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for inputs by name, of the types and shapes in `spec.inputs`.

        Raises BadInput when an input is missing, unknown, of another type or shape, or when the model does not take
        this combination of sizes or values.
        """
        self.check(inputs)
        try:
            found = self._session.run(self._outputs, dict(inputs))
        except Exception as error:  # ONNX Runtime's errors share no base
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
            reason = " ".join(str(error).split())
            raise BadInput(f"the model does not take these inputs ({shapes}): {reason:.300}") from error
        rows = next(iter(inputs.values())).shape[0] if self.spec.batched else 1
        self.metrics.count("steps")
        self.metrics.count("rows", rows)
        self.metrics.observe("batch_size", rows)
        return dict(zip(self._outputs, map(np.asarray, found), strict=True))

    def run_together(self, requests: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """What `run` gives for each request, computed as one batch.

        Only for an engine that is `batched`, and for requests whose shapes differ in axis 0 at most. Raises BadInput
        when any of them cannot be used.
        """
        for inputs in requests:
            self.check(inputs)
        names = [spec.name for spec in self.spec.inputs]
        joined = {name: np.concatenate([inputs[name] for inputs in requests]) for name in names}
        found = self.run(joined)
        ends = np.cumsum([inputs[names[0]].shape[0] for inputs in requests])[:-1]
        parts = {name: np.split(array, ends) for name, array in found.items()}
        return [{name: parts[name][place] for name in self._outputs} for place in range(len(requests))]

    def example(self) -> dict[str, Array]:
        """The inputs that the engine was tried on when it was built. Raises BadInput when they are missing."""
        try:
            with np.load(self._example) as arrays:
                return {spec.name: arrays[f"0.{place}"] for place, spec in enumerate(self.spec.inputs)}
        except (OSError, KeyError, ValueError) as error:
            raise BadInput(f"{self._example} cannot be read ({error}); build the engine again") from error

    def warm_up(self) -> None:
        """Computes the example."""
        self.run(self.example())

    def check(self, inputs: Mapping[str, Array]) -> None:
        """Raises BadInput unless these are the engine's inputs, of the right types, shapes and sizes."""
        known = [spec.name for spec in self.spec.inputs]
        for name in inputs:
            if name not in known:
                raise BadInput(f"there is no input {name!r}; this model takes {', '.join(known)}")
        sizes: dict[str, int] = {}
        for spec in self.spec.inputs:
            if spec.name not in inputs:
                raise BadInput(f"the input {spec.name!r} is missing; this model takes {', '.join(known)}")
            self._check_one(spec, inputs[spec.name], sizes)

    def _check_one(self, spec: TensorSpec, array: Array, sizes: dict[str, int]) -> None:
        """One input against its spec; `sizes` collects the axes by name over all inputs of a request."""
        if array.dtype.name != spec.dtype:
            raise BadInput(
                f"the input {spec.name!r} has the type {array.dtype.name}; it must be {spec.dtype}"
            )
        wanted = f"[{', '.join(map(str, spec.shape))}]"
        if array.ndim != len(spec.shape):
            raise BadInput(f"the input {spec.name!r} has the shape {list(array.shape)}; it must be {wanted}")
        for size, dim in zip(array.shape, spec.shape, strict=True):
            if isinstance(dim, int):
                if size != dim:
                    raise BadInput(
                        f"the input {spec.name!r} has the shape {list(array.shape)}; it must be {wanted}"
                    )
                continue
            axis = self._axes[dim]
            if size < axis.least or (axis.most is not None and size > axis.most):
                most = "" if axis.most is None else f" and at most {axis.most}"
                raise BadInput(
                    f"the input {spec.name!r} has the shape {list(array.shape)}, so {dim} is {size}; it must be at "
                    f"least {axis.least}{most}"
                )
            if sizes.setdefault(dim, size) != size:
                raise BadInput(
                    f"the input {spec.name!r} has the shape {list(array.shape)}, so {dim} is {size}; another input "
                    f"says {sizes[dim]}"
                )
