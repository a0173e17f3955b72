"""Int4Gemm plugins in a graph as standard operators again, so that the graph can be compared without a GPU."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from pipeline.fuse.matching import add_weight
from plugins.tensorrt import names
from plugins.weight_layout import SYMMETRIC_ZERO, unpack_codes, unpack_groups


def products_for_plugins(model: ir.Model) -> None:
    """Each Int4Gemm becomes DequantizeLinear, MatMul and perhaps Add, in place, from its packed bytes.

    Inputs go to their places by the plugin's own `input_names`, as they will on a GPU.
    """
    for node in list(model.graph):
        if node.domain == names.DOMAIN and node.op_type == names.INT4_GEMM:
            _replace(model.graph, node)


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    given = dict(zip(node.attributes[names.INPUTS].as_string().split(","), node.inputs, strict=True))
    group, columns = (node.attributes[name].as_int() for name in ("group", "columns"))
    rows, weight, scale = given["x"], _numbers(given["weight"]), _numbers(given["scale"])
    old, name = node.outputs[0], node.name or "product"
    k = _width(rows)
    codes = unpack_codes(torch.from_numpy(weight.view(np.uint8)), k, columns).numpy().astype(np.int8)
    steps = unpack_groups(torch.from_numpy(scale.astype(np.float32)), columns).numpy().astype(scale.dtype)
    inputs = [
        _constant(graph, f"{name}.codes", (codes - np.int8(SYMMETRIC_ZERO)).astype(ml_dtypes.int4)),
        _constant(graph, f"{name}.steps", steps),
    ]
    wide = _value(f"{name}.wide", old.dtype, (k, columns))
    product = _value(f"{name}.product", old.dtype, old.shape)
    made = [
        ir.node("DequantizeLinear", inputs, {"axis": 0, "block_size": group}, outputs=[wide], name=wide.name),
        ir.node(
            "MatMul", [rows, wide], outputs=[product], name=name, metadata_props=dict(node.metadata_props)
        ),
    ]
    if "bias" in given:
        total = _value(f"{name}.sum", old.dtype, old.shape)
        made.append(ir.node("Add", [product, given["bias"]], outputs=[total], name=f"{name}.add"))
    graph.insert_before(node, made)
    end = made[-1].outputs[0]
    old.replace_all_uses_with(end, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    end.name = old.name


def _width(rows: ir.Value | None) -> int:
    """Elements of a row."""
    assert rows is not None
    assert rows.shape is not None
    size = rows.shape[-1]
    assert isinstance(size, int)
    return size


def _numbers(value: ir.Value | None) -> npt.NDArray[Any]:
    assert value is not None
    assert value.const_value is not None
    return np.array(value.const_value.numpy())


def _value(name: str, dtype: ir.DataType | None, shape: Any) -> ir.Value:
    kind = None if dtype is None else ir.TensorType(dtype)
    return ir.Value(name=name, type=kind, shape=None if shape is None else ir.Shape(shape))


def _constant(graph: ir.Graph, name: str, array: npt.NDArray[Any]) -> ir.Value:
    return add_weight(graph, ir.tensor(np.asarray(array, order="C"), name=name), name)
