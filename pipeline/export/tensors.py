"""A model of named tensors becomes an ONNX graph; what its sizes do is found by running it.

The example inputs decide little by themselves: each dynamic size is tried at a second value, so that a size that
is baked in is found before anything is built; the same inputs are given twice, so that a result that differs from
run to run is found; and rows are computed alone and in company, so that requests are joined only where that changes
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from model_repo.runtime.contract import AxisSpec, TensorSpec
from model_repo.runtime.errors import BadInput

from .tensor_model import Array, Feeds, TensorModel, checked_dtype

ALONE = 1e-4
"""Relative difference that a row may have alone and in company: float32 rounding of another order of sums."""

_ROWS_TRIED = 3


@dataclass(frozen=True)
class ExportedTensors:
    """A graph, its contract, and runs for parity: inputs and the original model's outputs of each.

    The first run is the example. `batched`: see `EngineSpec`.
    """

    graph: ir.Model
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: tuple[AxisSpec, ...]
    batched: bool
    runs: tuple[Feeds, ...]
    expected: tuple[Sequence[Array], ...]


def export_tensors(model: TensorModel, opset: int) -> ExportedTensors:
    """Exports `model` after trying its sizes.

    Raises BadInput when the model does not take a second value of a dynamic size, gives something else at a second
    run, or its graph has other inputs or outputs than it; and what `TensorModel.graph` raises.
    """
    runs = [model.example, *(model.resized({axis.name: size}) for axis, size in _second_sizes(model))]
    expected = [model.run(model.example)]
    _check_repeats(model, expected[0])
    for (axis, size), feeds in zip(_second_sizes(model), runs[1:], strict=True):
        expected.append(_at_second_size(model, axis.name, size, feeds))
    joined = _batch_axis(model, expected, runs)
    batched = joined is not None and _rows_stand_alone(model, joined, runs, expected)
    if batched and joined is not None and model.sizes()[joined] > 1:
        runs.append(model.resized({joined: 1}))
        expected.append(model.run(runs[-1]))
    graph = model.graph(opset)
    _check_names(graph, model)
    outputs = tuple(
        _output(value, place, model, runs, expected) for place, value in enumerate(graph.graph.outputs)
    )
    return ExportedTensors(graph, model.inputs, outputs, model.axes, batched, tuple(runs), tuple(expected))


def _second_sizes(model: TensorModel) -> list[tuple[AxisSpec, int]]:
    """Each axis with another size than the example's, where its bounds leave one."""
    sizes = model.sizes()
    others = []
    for axis in model.axes:
        size = sizes[axis.name]
        if axis.most is None or size < axis.most:
            others.append((axis, size + 1))
        elif size > axis.least:
            others.append((axis, size - 1))
    return others


def _at_second_size(model: TensorModel, axis: str, size: int, feeds: Feeds) -> list[Array]:
    try:
        return model.run(feeds)
    except BadInput as error:
        raise BadInput(
            f"the size {axis!r} is said to be dynamic, and {model.sizes()[axis]} works; {size} does not: {error}. "
            "Give its limits, or leave it out of the dynamic sizes"
        ) from error


def _check_repeats(model: TensorModel, first: Sequence[Array]) -> None:
    """Raises BadInput when a second run on the same inputs gives other shapes or other numbers."""
    second = model.run(model.example)
    for name, one, other in zip(model.output_names, first, second, strict=True):
        if one.shape != other.shape:
            raise BadInput(
                f"the output {name!r} has the shape {list(one.shape)} at one run and {list(other.shape)} at the next, "
                "on the same inputs; a model must give the same at every run"
            )
        if not np.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True):
            raise BadInput(
                f"the output {name!r} differs from run to run on the same inputs; take random numbers (dropout, "
                "sampling) out of the model, or give them as an input"
            )


def _batch_axis(model: TensorModel, expected: Sequence[Sequence[Array]], runs: Sequence[Feeds]) -> str | None:
    """The size that is axis 0, and only that, of all inputs and outputs; None when there is none."""
    first = model.inputs[0].shape[:1]
    if not first or not isinstance(first[0], str):
        return None
    name = first[0]
    if any(spec.shape[:1] != (name,) or name in spec.shape[1:] for spec in model.inputs):
        return None
    sizes = [feeds[model.inputs[0].name].shape[0] for feeds in runs]
    if len(set(sizes)) == 1 or next(axis.least for axis in model.axes if axis.name == name) > 1:
        return None
    for place in range(len(expected[0])):
        shapes = [outputs[place].shape for outputs in expected]
        if any(shape[:1] != (size,) for shape, size in zip(shapes, sizes, strict=True)):
            return None
    return name


def _rows_stand_alone(
    model: TensorModel, axis: str, runs: Sequence[Feeds], expected: Sequence[Sequence[Array]]
) -> bool:
    """Whether rows computed alone are those computed together, so that requests may share a batch."""
    together = max(range(len(runs)), key=lambda run: runs[run][model.inputs[0].name].shape[0])
    feeds = {name: np.array(array) for name, array in runs[together].items()}
    rows = min(_ROWS_TRIED, len(next(iter(feeds.values()))))
    for row in range(rows):
        try:
            alone = model.run({name: array[row : row + 1] for name, array in feeds.items()})
        except BadInput:
            return False
        for one, many in zip(alone, expected[together], strict=True):
            if one.shape[1:] != many.shape[1:] or not _near(one[0], many[row]):
                return False
    return True


def _near(one: Array, other: Array) -> bool:
    if one.dtype.kind != "f":
        return bool(np.array_equal(one, other))
    left, right = one.astype(np.float64), other.astype(np.float64)
    return bool(np.linalg.norm(left - right) <= ALONE * max(float(np.linalg.norm(right)), 1e-30))


def _check_names(graph: ir.Model, model: TensorModel) -> None:
    """The graph keeps to the model's names. Raises BadInput: an input that is never read can get lost on the way."""
    found = ([value.name for value in graph.graph.inputs], [value.name for value in graph.graph.outputs])
    wanted = ([spec.name for spec in model.inputs], list(model.output_names))
    if found != wanted:
        raise BadInput(
            f"the graph has inputs {found[0]} and outputs {found[1]}, the model {wanted[0]} and {wanted[1]}; "
            "leave out inputs that the model does not read"
        )


def _output(
    value: ir.Value,
    place: int,
    model: TensorModel,
    runs: Sequence[Feeds],
    expected: Sequence[Sequence[Array]],
) -> TensorSpec:
    """An output with the sizes that it was seen to have. Raises BadInput when it was declared otherwise."""
    name = value.name or ""
    shapes = [outputs[place].shape for outputs in expected]
    if len({len(shape) for shape in shapes}) > 1:
        raise BadInput(
            f"the output {name!r} has the shapes {', '.join(str(list(shape)) for shape in shapes)}; the number of "
            "its dimensions must not depend on the inputs"
        )
    declared = [str(dim) if not isinstance(dim, int) else dim for dim in value.shape] if value.shape else None
    if declared is not None and len(declared) != len(shapes[0]):
        raise BadInput(f"the output {name!r} is declared {declared} and has the shape {list(shapes[0])}")
    dims: list[int | str] = []
    for axis in range(len(shapes[0])):
        seen = [shape[axis] for shape in shapes]
        said = declared[axis] if declared is not None else f"{name}_{axis}"
        if isinstance(said, int):
            if set(seen) != {said}:
                raise BadInput(
                    f"axis {axis} of the output {name!r} is declared {said} and was seen as {sorted(set(seen))}; "
                    "a size that changes needs a name"
                )
            dims.append(said)
        else:
            dims.append(_axis_seen(seen, model, runs) or _named(said, name, axis))
    dtype = checked_dtype(expected[0][place].dtype.name, f"output {name!r}")
    return TensorSpec(name, dtype, tuple(dims))


def _named(said: str, output: str, axis: int) -> str:
    return said if said not in ("", "None", "?") else f"{output}_{axis}"


def _axis_seen(seen: Sequence[int], model: TensorModel, runs: Sequence[Feeds]) -> str | None:
    """The dynamic size that was `seen` in every run; None when none was, or when it never changed."""
    if len(set(seen)) == 1:
        return None
    for axis in model.axes:
        spec, place = next(
            (spec, spec.shape.index(axis.name)) for spec in model.inputs if axis.name in spec.shape
        )
        if [feeds[spec.name].shape[place] for feeds in runs] == list(seen):
            return axis.name
    return None
