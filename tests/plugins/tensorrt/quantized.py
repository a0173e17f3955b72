"""Q/DQ nodes around products, and pools of eight bits, as the quantize stage writes them; scales are made up."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from plugins.schemas import PAGED_ATTENTION

LARGEST = {ir.DataType.INT8: 127.0, ir.DataType.FLOAT8E4M3FN: 448.0}


def quantize_products(model: ir.Model, dtype: ir.DataType) -> int:
    """Weights by channel and activations by tensor, in place, of each product of a constant matrix; gives how many."""
    done = 0
    for node in list(model.graph):
        weight = node.inputs[1] if node.op_type in ("MatMul", "Gemm") else None
        if weight is None or weight.const_value is None:
            continue
        axis = 0 if node.attributes.get_int("transB", 0) else 1
        matrix = weight.const_value.numpy()
        scale = (np.abs(matrix).max(axis=1 - axis) / LARGEST[dtype]).astype(np.float32)
        codes = matrix / np.expand_dims(scale, 1 - axis)
        stored = (
            codes.round().astype(np.int8)
            if dtype == ir.DataType.INT8
            else codes.astype(ml_dtypes.float8_e4m3fn)
        )
        name = weight.name or ""
        axes = {"axis": axis}
        node.replace_input_with(
            1,
            _dequantized(model, node, _constant(model, f"{name}.codes", stored), scale, f"{name}.wide", axes),
        )
        rows = node.inputs[0]
        assert rows is not None
        step = np.array(8.0 / LARGEST[dtype], np.float32)
        rounded = ir.Value(name=f"{node.name}.codes", type=ir.TensorType(dtype), shape=rows.shape)
        scalar = _constant(model, f"{node.name}.step", step)
        zero = _constant(model, f"{node.name}.zero", np.zeros((), dtype.numpy()))
        quantize = ir.node(
            "QuantizeLinear", [rows, scalar, zero], outputs=[rounded], name=f"{node.name}.quantize"
        )
        model.graph.insert_before(node, quantize)
        node.replace_input_with(0, _dequantized(model, node, rounded, step, f"{node.name}.rounded", {}))
        done += 1
    return done


def quantize_pools(model: ir.Model, dtype: ir.DataType, kv_heads: int) -> None:
    """Pools of eight bits with a scale a head."""
    for node in model.graph:
        if node.op_type != PAGED_ATTENTION.name:
            continue
        for place, (pool, scale) in enumerate(
            (("key_cache", "k_scale"), ("value_cache", "v_scale")), start=1
        ):
            value = node.inputs[PAGED_ATTENTION.input_index(pool)]
            assert value is not None
            value.type = node.outputs[place].type = ir.TensorType(dtype)
            scales = _constant(model, f"{value.name}.scale", np.full(kv_heads, 0.02, np.float32))
            node.replace_input_with(PAGED_ATTENTION.input_index(scale), scales)


def _dequantized(
    model: ir.Model, node: ir.Node, codes: ir.Value, scale: np.ndarray, name: str, attributes: dict[str, int]
) -> ir.Value:
    wide = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=codes.shape)
    factor = _constant(model, f"{name}.scale", scale)
    made = ir.node("DequantizeLinear", [codes, factor], attributes, outputs=[wide], name=f"{name}.dequantize")
    model.graph.insert_before(node, made)
    return wide


def _constant(model: ir.Model, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value
