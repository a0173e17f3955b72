"""Products of a quantized graph as `QuantizedMatMul` of plugins/cpu. Where only weights are quantized, it rounds what
they are multiplied with: for 4-bit weights to int8, each block of a row by itself; for blocks of 8-bit weights each row
to 16 bits, which moves a result less than the weights' own rounding by far. Patterns that it does not know (E4M3) stay
as they are: DequantizeLinear and products in float32, which compute exactly what codes would.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from pipeline.fuse.matching import add_weight
from plugins.column_blocks import MOST_BYTES_IN_BLOCK, pack_blocks, pack_bytes
from plugins.schemas import DOMAIN, FAKE_QUANTIZE_TOKENS, QUANTIZED_GATHER, QUANTIZED_MATMUL

from .operator_nodes import put_in_place


class _Weight(NamedTuple):
    """A dequantized constant as [out, in] codes; scales [out] or [out, blocks]."""

    name: str
    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    bits: int
    block: int | None
    origin: ir.Value


class _Activation(NamedTuple):
    """What a product reads: `value` before rounding; `scale` a constant for all rows, None for one a row."""

    value: ir.Value
    rounded: bool
    scale: ir.Value | None = None


_PRODUCTS = ("MatMul", "Gemm", "Conv", "Einsum", "Attention", "GRU", "LSTM", "RNN")
"""Parts of the names of standard and com.microsoft operators whose sums MLAS computes."""


def rows_alone(model: ir.Model) -> bool:
    """Whether a compiled graph has products, and leaves none of them to MLAS."""
    nodes = list(model.graph.all_nodes())
    left = any(node.domain != DOMAIN and any(part in node.op_type for part in _PRODUCTS) for node in nodes)
    return not left and any(node.op_type == QUANTIZED_MATMUL.name for node in nodes)


def lower_products(model: ir.Model) -> None:
    """Rewrites the quantized products and tables of `model` in place."""
    lowering = _Lowering(model)
    for node in list(model.graph):
        if node.domain == "" and node.op_type in ("MatMul", "Gemm"):
            lowering.product(node)
    for node in list(model.graph):
        if node.domain == "" and node.op_type == "Gather":
            lowering.table(node)
    passes.RemoveUnusedNodesPass()(model)


class _Lowering:
    """The constants that were made, by weight: nodes that share a weight share its packed form."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.graph = model.graph
        self.packed: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}

    def product(self, node: ir.Node) -> None:
        """A product with a weight of 8 or 4 bits."""
        transposed = node.op_type == "MatMul" or not node.attributes.get_int("transB", 0)
        weight = _weight(node.inputs[1], transposed)
        if weight is None:
            return
        activation = _activation(node.inputs[0])
        bias, last = self._bias(node, len(weight.codes))
        wide = weight.bits == 8 and weight.block is not None  # rows of 16 bits, which no node rounds
        if activation.rounded == wide and (wide or weight.block is None):
            return
        codes, scales = self._pack(weight)
        inputs = [activation.value, codes, scales, bias, activation.scale]
        while inputs[-1] is None:
            inputs.pop()
        attributes = {
            "bits": weight.bits,
            "columns": len(weight.codes),
            "input_blocks": int(weight.bits == 4 and not activation.rounded),
        }
        put_in_place(self.model, node, QUANTIZED_MATMUL.name, DOMAIN, inputs, attributes, last)

    def table(self, node: ir.Node) -> None:
        """Rows of a quantized matrix."""
        weight = _weight(node.inputs[0], transposed=False)
        if weight is None:
            return
        attributes = {"bits": weight.bits, "columns": len(weight.codes), "size": weight.codes.shape[1]}
        codes, scales = self._pack(weight)
        inputs = [codes, scales, node.inputs[1]]
        put_in_place(self.model, node, QUANTIZED_GATHER.name, DOMAIN, inputs, attributes)

    def _pack(self, weight: _Weight) -> tuple[ir.Value, ir.Value]:
        if weight.origin not in self.packed:
            if weight.block is None:
                codes, scales = pack_bytes(weight.codes), weight.scales
            else:
                codes, scales = pack_blocks(weight.codes, weight.scales, weight.block, weight.bits)
            self.packed[weight.origin] = (
                self._constant(f"{weight.name}.packed", codes, weight.origin),
                self._constant(f"{weight.name}.packed_scales", scales, None),
            )
        return self.packed[weight.origin]

    def _bias(self, node: ir.Node, columns: int) -> tuple[ir.Value | None, ir.Node]:
        """A constant [columns] that is added to the product, and the node that does it: the product or an Add."""
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            return node.inputs[2], node
        readers = list(node.outputs[0].uses())
        if len(readers) != 1 or node.outputs[0].is_graph_output():
            return None, node
        reader, place = readers[0]
        other = reader.inputs[1 - place] if reader.op_type == "Add" and reader.domain == "" else None
        if other is None or other.const_value is None or tuple(other.const_value.shape.numpy()) != (columns,):
            return None, node
        return other, reader

    def _constant(self, name: str, array: npt.NDArray[Any], origin: ir.Value | None) -> ir.Value:
        return add_weight(self.graph, ir.tensor(np.asarray(array, order="C"), name=name), name, origin)


def _weight(value: ir.Value | None, transposed: bool) -> _Weight | None:
    """The symmetric codes behind a weight; None for other weights. `transposed`: it lies as [in, out]."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or len(node.inputs) != 2:
        return None
    codes, scales = node.inputs
    assert codes is not None
    assert scales is not None
    if codes.const_value is None or scales.const_value is None:
        return None
    kind = codes.const_value.dtype
    if kind not in (ir.DataType.INT8, ir.DataType.INT4) or len(codes.const_value.shape) != 2:
        return None
    block = node.attributes.get_int("block_size", 0) or None
    axis = node.attributes.get_int("axis", 1) % 2
    out_axis = 1 if transposed else 0
    if axis != (out_axis if block is None else 1 - out_axis) or scales.const_value.size == 1:
        return None
    stored = codes.const_value.numpy().astype(np.int8)
    steps = scales.const_value.numpy().astype(np.float32)
    if transposed:
        stored, steps = stored.T, steps.T
    name = (codes.name or "weight").removesuffix(".codes")
    bits = 4 if kind == ir.DataType.INT4 else 8
    if bits == 4 and block is None:
        return None
    while bits == 8 and block is not None and block > MOST_BYTES_IN_BLOCK:
        if block % 2:
            return None
        block //= 2
        steps = np.repeat(steps, 2, axis=1)[:, : -(-stored.shape[1] // block)]
    return _Weight(name, np.ascontiguousarray(stored), np.ascontiguousarray(steps), bits, block, codes)


def _activation(value: ir.Value | None) -> _Activation:
    """What stands before the rounding of a product's input to symmetric int8 codes."""
    assert value is not None
    node = value.producer()
    if node is None:
        return _Activation(value, False)
    if node.domain == DOMAIN and node.op_type == FAKE_QUANTIZE_TOKENS.name:
        assert node.inputs[0] is not None
        return _Activation(node.inputs[0], True)
    if node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return _Activation(value, False)
    down = node.inputs[0].producer()
    if down is None or down.op_type != "QuantizeLinear" or node.inputs[0].dtype != ir.DataType.INT8:
        return _Activation(value, False)
    scale = down.inputs[1]
    assert down.inputs[0] is not None
    assert scale is not None
    if scale.const_value is None or len(scale.const_value.shape):
        return _Activation(value, False)
    return _Activation(down.inputs[0], True, scale)
