"""Checks of an ONNX graph that somebody else made, each with a sentence of its own.

What onnx's checker says clearly is left to it, and comes last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from model_repo.runtime.errors import BadInput

OLDEST_OPSET, NEWEST_OPSET = 7, 24
"""Opsets that are taken; older graphs than NEWEST_OPSET are converted to it."""

MAX_BYTES = 2**31 - 1
"""Bytes of one protobuf message, by its format."""

STANDARD = ("", "ai.onnx")


def checked_graph(path: Path) -> ModelProto:
    """The graph in the file, whole, without its external data. Raises BadInput for what cannot be used."""
    model = _parsed(path)
    for graph in _graphs(model.graph):
        for tensor in _tensors(graph):
            _check_external(tensor, path)
    _check_interface(model.graph, path)
    _check_operators(model, path)
    _check_values(model.graph, set(), path)
    try:
        onnx.checker.check_model(path)
    except Exception as error:  # the checker's errors share no base
        reason = " ".join(str(error).split())
        raise BadInput(f"{path} is not valid ONNX: {reason:.400}") from error
    return model


def external_files(model: ModelProto, path: Path) -> tuple[Path, ...]:
    """The files beside the graph that hold its weights, once each, sorted."""
    names = {
        entry.value
        for graph in _graphs(model.graph)
        for tensor in _tensors(graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(sorted(path.parent / name for name in names))


def _parsed(path: Path) -> ModelProto:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise BadInput(
            f"{path} has {size} bytes; one protobuf holds at most {MAX_BYTES}. Save the weights as external data "
            "(onnx.save(..., save_as_external_data=True))"
        )
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own errors share no base with the rest
        raise BadInput(f"{path} is truncated or no ONNX file ({error}); get the file again") from error
    if not model.HasField("graph") or not model.opset_import:
        raise BadInput(
            f"{path} is truncated or no ONNX file: it holds no graph, or no opset; get the file again"
        )
    return model


def _check_interface(graph: GraphProto, path: Path) -> None:
    """Inputs and outputs are there, are tensors, and have as many dimensions every time."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if not graph.output:
        raise BadInput(f"{path} has no outputs, so nothing could be asked of it; export it with outputs")
    if not inputs:
        raise BadInput(f"{path} has no inputs: it always gives the same; export it with inputs")
    for value in (*inputs, *graph.output):
        if not value.name:
            raise BadInput(f"{path} has an input or output without a name; name it")
        if not value.type.HasField("tensor_type"):
            kind = value.type.WhichOneof("value") or "of no type"
            raise BadInput(
                f"{path}: {value.name!r} is {kind.removesuffix('_type')}; inputs and outputs must be tensors"
            )
    for value in inputs:
        if not value.type.tensor_type.HasField("shape"):
            raise BadInput(
                f"{path}: the input {value.name!r} has no shape, so its number of dimensions may differ from run to "
                "run; export it with a shape (sizes may be dynamic)"
            )


def _check_operators(model: ModelProto, path: Path) -> None:
    """Every operator is a standard one that the graph's opset has, or a function that the file brings along."""
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    opset = next((opsets[domain] for domain in STANDARD if domain in opsets), None)
    if opset is None or not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise BadInput(
            f"{path} is of opset {opset}; {OLDEST_OPSET} to {NEWEST_OPSET} are taken. Export it again with one of "
            "these, or convert it with onnx.version_converter"
        )
    functions = {(function.domain, function.name) for function in model.functions}
    bodies: list[Sequence[NodeProto]] = [graph.node for graph in _graphs(model.graph)]
    bodies += [function.node for function in model.functions]
    for node in (node for body in bodies for node in body):
        if (node.domain, node.op_type) in functions:
            continue
        shown = f"{node.domain}::{node.op_type}" if node.domain not in STANDARD else node.op_type
        where = f"{path}: node {node.name!r} is {shown}"
        if node.domain not in STANDARD:
            raise BadInput(
                f"{where}; standard operators are taken, and functions that the file brings along. Export the graph "
                "as it was before a runtime optimized it"
            )
        if not _known(node.op_type, opset):
            raise BadInput(f"{where}, which opset {opset} does not have")


def _known(op_type: str, opset: int) -> bool:
    try:
        return not onnx.defs.get_schema(op_type, opset, "").deprecated
    except onnx.defs.SchemaError:
        return False


def _check_values(graph: GraphProto, outer: set[str], path: Path) -> None:
    """Every value that is read is defined, once, and no node waits for itself."""
    makers: dict[str, NodeProto] = {}
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        shown = f"node {node.name!r} ({node.op_type})"
        if not any(node.output):
            raise BadInput(f"{path}: {shown} has no output with a name; name what it makes")
        for name in filter(None, node.output):
            if name in makers or name in given:
                raise BadInput(f"{path}: the value {name!r} is defined twice, once by {shown}")
            makers[name] = node
    known = outer | given | set(makers)
    for node in graph.node:
        for name in filter(None, node.input):
            if name not in known:
                raise BadInput(
                    f"{path}: node {node.name!r} ({node.op_type}) reads {name!r}, which nothing defines"
                )
    for value in graph.output:
        if value.name not in known:
            raise BadInput(f"{path}: the output {value.name!r} is computed by no node")
    _check_acyclic(graph, makers, path)
    for node in graph.node:
        for inner in _inner_graphs(node):
            _check_values(inner, known, path)


def _check_acyclic(graph: GraphProto, makers: dict[str, NodeProto], path: Path) -> None:
    """Raises BadInput with the values on a cycle when there is one."""
    state: dict[str, bool] = {}  # value -> whether all that it needs has been looked at
    for start in makers:
        way: list[tuple[str, Iterator[str]]] = []
        if start not in state:
            state[start] = False
            way.append((start, iter(makers[start].input)))
        while way:
            value, inputs = way[-1]
            needed = next((name for name in inputs if name in makers), None)
            if needed is None:
                state[value] = True
                way.pop()
            elif needed not in state:
                state[needed] = False
                way.append((needed, iter(makers[needed].input)))
            elif not state[needed]:
                names = [name for name, _ in way]
                cycle = [*names[names.index(needed) :], needed]
                raise BadInput(f"{path} has a cycle: {' needs '.join(map(repr, cycle))}")


def _check_external(tensor: TensorProto, path: Path) -> None:
    """The tensor's file lies in the graph's folder, links followed, and is long enough."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file = path.parent / location
    folder = path.parent.resolve()
    if not location or Path(location).is_absolute() or not file.resolve().is_relative_to(folder):
        raise BadInput(
            f"{path}: the weight {tensor.name!r} is said to lie in {location!r}, outside the graph's folder; weights "
            "must lie beside the graph, and not be links to elsewhere"
        )
    if not file.is_file():
        raise BadInput(
            f"{path}: the weight {tensor.name!r} lies in {location!r}, which is missing; get that file too"
        )
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", file.stat().st_size - offset))
    except ValueError as error:
        raise BadInput(
            f"{path}: the weight {tensor.name!r} has no readable place in {location!r}: {error}"
        ) from error
    if offset < 0 or length < 0 or offset + length > file.stat().st_size:
        raise BadInput(
            f"{path}: the weight {tensor.name!r} takes the bytes {offset} to {offset + length} of {location!r}, which "
            f"has {file.stat().st_size}; get that file again"
        )


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and all graphs within its nodes."""
    yield graph
    for node in graph.node:
        for inner in _inner_graphs(node):
            yield from _graphs(inner)


def _inner_graphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Weights, and constants in attributes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            found: Any = (attribute.t,) if attribute.type == AttributeProto.TENSOR else attribute.tensors
            yield from found
