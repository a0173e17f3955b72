"""Weights of blocks with zero points, which `QuantizedMatMul` of plugins/cpu does not know, as ONNX Runtime's
com.microsoft.MatMulNBits and GatherBlockQuantized.

MatMulNBits rounds what it multiplies to int8, each block of a row by itself (its accuracy_level 4). It computes a
single row another way than several, so that engines with it add a second row (`quantized.rows_alone`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from pipeline.quantize.nodes import constant

from .operator_nodes import put_in_place

DOMAIN = "com.microsoft"
BLOCKS = (16, 32, 64, 128, 256)
"""What the operators take."""
_ROUNDED_ACTIVATIONS = 4


class _Blocks(NamedTuple):
    """A constant as both operators read it, N rows of K inputs in G blocks."""

    codes: ir.Value  # uint8 [N, G, block * bits / 8]
    scales: ir.Value  # float32 [N, G]
    zeros: ir.Value  # uint8 [N, ceil(G * bits / 8)]
    bits: int
    block: int
    rows: int
    inputs: int


def lower_zero_points(model: ir.Model) -> None:
    """Rewrites the products and tables of `model` whose weights have zero points, in place; other patterns are left."""
    made: dict[ir.Value, _Blocks] = {}
    for node in list(model.graph):
        product = node.op_type in ("MatMul", "Gemm")
        if node.domain != "" or not (product or node.op_type == "Gather"):
            continue
        weight = node.inputs[1 if product else 0]
        transposed = node.op_type == "MatMul" or (product and not node.attributes.get_int("transB", 0))
        source = None if weight is None else weight.producer()
        if source is None or not _has_zero_points(source, transposed):
            continue
        assert weight is not None
        if weight not in made:
            made[weight] = _blocks(model.graph, source, transposed)
        if product:
            _product(model, node, made[weight])
        elif (
            made[weight].inputs % made[weight].block == 0
        ):  # else rows would come with the last block's padding
            _table(model, node, made[weight])
    passes.RemoveUnusedNodesPass()(model)


def _has_zero_points(node: ir.Node, transposed: bool) -> bool:
    """Whether a node dequantizes a constant matrix by blocks of its inputs, with zero points."""
    if node.op_type != "DequantizeLinear" or len(node.inputs) != 3:
        return False
    codes = node.inputs[0]
    if any(value is None or value.const_value is None for value in node.inputs) or codes is None:
        return False
    assert codes.const_value is not None
    kind, rank = codes.const_value.dtype, len(codes.const_value.shape)
    along_inputs = node.attributes.get_int("axis", 1) % 2 == (0 if transposed else 1)
    block = node.attributes.get_int("block_size", 0)
    return kind in (ir.DataType.INT4, ir.DataType.INT8) and rank == 2 and along_inputs and block in BLOCKS


def _blocks(graph: ir.Graph, node: ir.Node, transposed: bool) -> _Blocks:
    """The constants of a dequantized weight, signed codes shifted to unsigned ones."""
    origin = node.inputs[0]
    assert origin is not None
    assert origin.const_value is not None
    bits = 4 if origin.const_value.dtype == ir.DataType.INT4 else 8
    arrays: list[npt.NDArray[Any]] = []
    for value in node.inputs:
        assert value is not None
        assert value.const_value is not None
        array = value.const_value.numpy()
        arrays.append(array.T if transposed else array)
    middle = 1 << (bits - 1)
    codes, zeros = ((array.astype(np.int16) + middle).astype(np.uint8) for array in (arrays[0], arrays[2]))
    block = node.attributes.get_int("block_size", 0)
    rows, inputs = codes.shape
    padded = np.pad(codes, ((0, 0), (0, -inputs % block)))
    name = (origin.name or "weight").removesuffix(".codes")
    blocks = _packed(padded, bits).reshape(rows, zeros.shape[1], -1)
    scales = np.ascontiguousarray(arrays[1]).astype(np.float32)
    return _Blocks(
        constant(graph, f"{name}.blocks", blocks, ir.DataType.UINT8, origin),
        constant(graph, f"{name}.block_scales", scales, ir.DataType.FLOAT, None),
        constant(graph, f"{name}.block_zeros", _packed(zeros, bits), ir.DataType.UINT8, None),
        bits,
        block,
        rows,
        inputs,
    )


def _packed(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Rows of bytes; of 4 bits two codes a byte, the low nibble first."""
    if bits == 8:
        return np.ascontiguousarray(codes)
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    packed: npt.NDArray[np.uint8] = even[:, ::2] | even[:, 1::2] << np.uint8(4)
    return packed


def _product(model: ir.Model, node: ir.Node, weight: _Blocks) -> None:
    inputs = [node.inputs[0], weight.codes, weight.scales, weight.zeros]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        inputs += [None, node.inputs[2]]  # an order of groups, and the bias
    attributes = {
        "K": weight.inputs,
        "N": weight.rows,
        "bits": weight.bits,
        "block_size": weight.block,
        "accuracy_level": _ROUNDED_ACTIVATIONS,
    }
    put_in_place(model, node, "MatMulNBits", DOMAIN, inputs, attributes)


def _table(model: ir.Model, node: ir.Node, weight: _Blocks) -> None:
    assert weight.codes.const_value is not None
    # The same bytes under another shape; weights are kept by content.
    flat = weight.codes.const_value.numpy().reshape(weight.rows, -1)
    rows = constant(model.graph, f"{weight.codes.name}.rows", flat, ir.DataType.UINT8, weight.codes)
    attributes = {"bits": weight.bits, "block_size": weight.block, "gather_axis": 0, "quantize_axis": 1}
    inputs = [rows, node.inputs[1], weight.scales, weight.zeros]
    put_in_place(model, node, "GatherBlockQuantized", DOMAIN, inputs, attributes)
