"""A lowered ONNX graph as a description without ONNX: `python -m plugins.graph_walk.onnx_file GRAPH.onnx FOLDER`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from model_repo.runtime.errors import BadInput, SlipwayError

from .description import DTYPES, End, Graph, Node

_FOUR_BITS = ("int4", "uint4")


def described(model: ir.Model) -> Graph:
    """`model` as a description. Raises BadInput for types that torch has not, and for graphs inside nodes."""
    weights = {
        name: _weight(value.const_value)
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.uses()
    }
    nodes = []
    for node in model.graph:
        if node.domain == "" and node.op_type == "Constant":
            (attribute,) = node.attributes.values()
            weights[node.outputs[0].name or ""] = _attribute_tensor(node, attribute)
            continue
        nodes.append(
            Node(
                node.op_type,
                tuple("" if value is None else value.name or "" for value in node.inputs),
                tuple(value.name or "" for value in node.outputs),
                {name: _attribute(node, attribute) for name, attribute in node.attributes.items()},
                node.name or "",
                node.domain,
            )
        )
    return Graph(
        tuple(nodes),
        tuple(_end(value) for value in model.graph.inputs),
        tuple(_end(value) for value in model.graph.outputs),
        weights,
    )


def read(path: Path) -> Graph:
    """The graph of a file, with its external weights. Raises BadInput when it cannot be read."""
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf's own errors share no base with the rest
        raise BadInput(f"{path} is not a readable ONNX graph: {error}") from error
    return described(model)


def dtype_name(dtype: ir.DataType | None) -> str:
    """As descriptions call it. Raises BadInput for a type that torch has not."""
    name = "float32" if dtype == ir.DataType.FLOAT else str(dtype).lower()
    name = "float64" if dtype == ir.DataType.DOUBLE else name
    if name not in DTYPES and name not in _FOUR_BITS:
        raise BadInput(f"the graph holds {dtype}, which has no type of torch; known are {', '.join(DTYPES)}")
    return name


def _end(value: ir.Value) -> End:
    if value.shape is None:
        raise BadInput(f"the graph's end {value.name!r} has no shape")
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    return End(value.name or "", dtype_name(value.dtype), shape)


def _weight(tensor: ir.TensorProtocol) -> Tensor:
    name = dtype_name(tensor.dtype)
    array = tensor.numpy()
    if name in _FOUR_BITS:
        return torch.from_numpy(array.astype("int8"))
    if name in ("bfloat16", "float8e4m3fn"):  # numpy has them from ml_dtypes only
        raw = torch.from_numpy(array.view("uint8" if name.startswith("float8") else "uint16").copy())
        return raw.view(DTYPES[name])
    return torch.from_numpy(array.copy())


def _attribute(node: ir.Node, attribute: ir.Attr) -> Any:
    kind = attribute.type
    if kind in (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING):
        return attribute.value
    if kind in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return list(attribute.value)
    if kind == ir.AttributeType.TENSOR:
        return _weight(attribute.as_tensor())
    raise BadInput(
        f"{node.op_type} (node {node.name!r}) has the attribute {attribute.name!r} of kind {kind.name}"
    )


def _attribute_tensor(node: ir.Node, attribute: ir.Attr) -> Tensor:
    """The value of a Constant."""
    value = _attribute(node, attribute)
    if isinstance(value, Tensor):
        return value
    whole = attribute.type in (ir.AttributeType.INT, ir.AttributeType.INTS)
    return torch.tensor(value, dtype=torch.int64 if whole else torch.float32)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m plugins.graph_walk.onnx_file`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m plugins.graph_walk.onnx_file", description=__doc__)
    parser.add_argument("graph", type=Path, help="a graph lowered for TensorRT")
    parser.add_argument("folder", type=Path, help="where the description goes")
    given = parser.parse_args(arguments)
    try:
        read(given.graph).write(given.folder)
    except SlipwayError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(given.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
