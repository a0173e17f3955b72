"""A graph that somebody else exported, ready to run and to go on as it is."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import ModelProto
from onnx_ir.passes import common as passes
from onnxscript import version_converter

from model_repo.runtime.contract import AxisSpec, TensorSpec
from model_repo.runtime.errors import BadInput
from pipeline.graph import load_graph

from .tensor_model import Array, Feeds, TensorModel, checked_dtype

SIZES = (8, 32, 64, 128, 224)
"""Sizes that dynamic axes other than the first are tried at, when no example says better."""

_BATCH = 2


class GraphModel(TensorModel):
    """See `TensorModel`. Without `example` inputs are made up: normal numbers, integers of 0 and 1."""

    origin = "the file given"

    def __init__(self, proto: ModelProto, path: Path, example: Mapping[str, Array] | None) -> None:
        self._path = path
        self._session = _session(path)
        weights = {tensor.name for tensor in proto.graph.initializer}
        values = [value for value in proto.graph.input if value.name not in weights]
        self.inputs = tuple(_spec(value, path) for value in values)
        self._output_names = [value.name for value in proto.graph.output]
        names = dict.fromkeys(dim for spec in self.inputs for dim in spec.shape if isinstance(dim, str))
        self.axes = tuple(AxisSpec(name) for name in names)
        if example is not None:
            self.example = _fitting(example, self.inputs, path)
        else:
            self.example = self._made_up(list(names))

    @property
    def output_names(self) -> Sequence[str]:
        """See `TensorModel`."""
        return self._output_names

    def run(self, feeds: Feeds) -> list[Array]:
        """See `TensorModel`."""
        try:
            found = self._session.run(self._output_names, dict(feeds))
        except Exception as error:  # ONNX Runtime's errors share no base
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            reason = " ".join(str(error).split())
            raise BadInput(f"{self._path} does not run with {shapes}: {reason:.300}") from error
        arrays = [np.asarray(array) for array in found]
        for name, array in zip(self._output_names, arrays, strict=True):
            checked_dtype(array.dtype.name, f"the output {name!r} of {self._path}")
        return arrays

    def graph(self, opset: int) -> ir.Model:
        """See `TensorModel`: the file's own nodes, functions put in their place, in the opset asked for."""
        model = load_graph(self._path)
        weights = set(model.graph.initializers)
        kept = [value for value in model.graph.inputs if value.name not in weights]
        model.graph.inputs.clear()
        model.graph.inputs.extend(kept)
        passes.InlinePass()(model)
        _converted(model, opset, self._path)
        for value, spec in zip(model.graph.inputs, self.inputs, strict=True):
            value.shape = ir.Shape(spec.shape)
        return model

    def _made_up(self, axes: Sequence[str]) -> dict[str, Array]:
        """Inputs of the first sizes that the graph runs with. Raises BadInput when it runs with none."""
        first = {spec.shape[0] for spec in self.inputs if spec.shape}
        problem: BadInput | None = None
        for size in SIZES:
            sizes = {name: _BATCH if name in first else size for name in axes}
            feeds = {spec.name: _random(spec, sizes, place) for place, spec in enumerate(self.inputs)}
            try:
                self.run(feeds)
            except BadInput as error:
                problem = problem or error
                continue
            return feeds
        raise BadInput(
            f"{problem}; inputs were made up. Give fitting ones: --example FILE.npz, an array for each input"
        ) from problem


def _session(path: Path) -> ort.InferenceSession:
    """The file as it is, nothing optimized. Raises BadInput when ONNX Runtime does not take it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base
        reason = " ".join(str(error).split())
        raise BadInput(f"ONNX Runtime does not take {path}: {reason:.400}") from error


def _spec(value: onnx.ValueInfoProto, path: Path) -> TensorSpec:
    """A graph input; dynamic sizes without a name are called after their axis."""
    kind = value.type.tensor_type
    dtype = ir.DataType(kind.elem_type)
    name = checked_dtype(
        "string" if dtype == ir.DataType.STRING else dtype.numpy().name, f"the input {value.name!r} of {path}"
    )
    dims: list[int | str] = []
    for axis, dim in enumerate(kind.shape.dim):
        if dim.HasField("dim_value"):
            if dim.dim_value < 1:
                raise BadInput(
                    f"{path}: axis {axis} of the input {value.name!r} has the size {dim.dim_value}"
                )
            dims.append(dim.dim_value)
        else:
            dims.append(dim.dim_param or f"{value.name}_{axis}")
    return TensorSpec(value.name, name, tuple(dims))


def _random(spec: TensorSpec, sizes: Mapping[str, int], seed: int) -> Array:
    random = np.random.default_rng(seed)
    shape = tuple(dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape)
    if spec.dtype.startswith("float"):
        return np.asarray(random.standard_normal(shape)).astype(spec.dtype)
    return np.asarray(random.integers(0, 2, shape)).astype(spec.dtype)


def _fitting(example: Mapping[str, Array], inputs: Sequence[TensorSpec], path: Path) -> dict[str, Array]:
    """The example's arrays in the graph's order. Raises BadInput when they do not fit the graph's inputs."""
    wanted = {spec.name for spec in inputs}
    if set(example) != wanted:
        raise BadInput(f"the example holds {sorted(example)}; {path} takes {sorted(wanted)}")
    sizes: dict[str, int] = {}
    for spec in inputs:
        array = example[spec.name]
        fits = array.ndim == len(spec.shape) and all(
            size == (dim if isinstance(dim, int) else sizes.setdefault(dim, size))
            for size, dim in zip(array.shape, spec.shape, strict=True)
        )
        if array.dtype.name != spec.dtype or not fits or not array.size:
            raise BadInput(
                f"the example's {spec.name!r} is {array.dtype.name} {list(array.shape)}; {path} takes {spec.dtype} "
                f"[{', '.join(map(str, spec.shape))}]"
            )
    return {spec.name: np.ascontiguousarray(example[spec.name]) for spec in inputs}


def _converted(model: ir.Model, opset: int, path: Path) -> None:
    """The graph in the opset, in place. Raises BadInput when a node cannot be converted."""
    found: Any = model.graph.opset_imports.get("")
    if found == opset:
        return
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of its own fallback to onnx's converter
    try:
        version_converter.convert_version(model, opset, fallback=True)
    except Exception as error:  # converters raise whatever their parts raise
        reason = " ".join(str(error).split())
        raise BadInput(
            f"{path} is of opset {found} and cannot be converted to {opset}: {reason:.300}; export it again with opset "
            f"{opset}"
        ) from error
    finally:
        logger.setLevel(level)
    if model.graph.opset_imports.get("") != opset:
        raise BadInput(
            f"{path} is of opset {found} and cannot be converted to {opset}; export it with that opset"
        )
