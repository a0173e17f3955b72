"""Experts of a quantized graph as `QuantizedExpertLinear` of plugins/cpu.

Where only weights are quantized, the product rounds what they are multiplied with, as products with one matrix do
(`quantized.py`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from pipeline.quantize.nodes import constant
from plugins.column_blocks import pack_blocks, pack_bytes
from plugins.schemas import DOMAIN, EXPERT_LINEAR, FAKE_QUANTIZE_TOKENS, QUANTIZED_EXPERT_LINEAR

from .operator_nodes import put_in_place


def lower_experts(model: ir.Model) -> None:
    """Rewrites the experts of `model` whose weights are codes of 8 or 4 bits, in place."""
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type == EXPERT_LINEAR.name:
            _lower(model, node)
    passes.RemoveUnusedNodesPass()(model)


def packed_experts(
    codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], block: int | None, bits: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Codes [experts, out, in] and scales [experts, out], or [experts, out, blocks], as the operator has them.

    `block`: inputs that share a scale; None for a scale an output, which takes 8 `bits`. Gives the packed codes
    [experts, ...] and [experts, out] or [experts] (`plugins.column_blocks`). Raises BadInput as packing does.
    """
    if block is None:
        return np.stack([pack_bytes(expert) for expert in codes]), scales
    made = [pack_blocks(expert, steps, block, bits) for expert, steps in zip(codes, scales, strict=True)]
    return np.stack([packed for packed, _ in made]), np.stack([factor for _, factor in made])


def _lower(model: ir.Model, node: ir.Node) -> None:
    source = None if node.inputs[1] is None else node.inputs[1].producer()
    if source is None or source.op_type != "DequantizeLinear":
        return
    codes, scales = source.inputs[0], source.inputs[1]
    assert codes is not None
    assert scales is not None
    if codes.const_value is None or scales.const_value is None:
        return
    transposed = bool(node.attributes.get_int("transposed", 0))
    stored = codes.const_value.numpy().astype(np.int8)
    steps = scales.const_value.numpy().astype(np.float32)
    if transposed:
        stored, steps = stored.swapaxes(1, 2), steps.swapaxes(1, 2)
    bits = 4 if codes.const_value.dtype == ir.DataType.INT4 else 8
    block = source.attributes.get_int("block_size", 0)
    name = (codes.name or "experts").removesuffix(".codes")
    value = node.inputs[0]
    assert value is not None
    down = value.producer()
    rounded = down is not None and down.domain == DOMAIN and down.op_type == FAKE_QUANTIZE_TOKENS.name
    by_output = bits == 8 and rounded and block == stored.shape[2]
    packed, factors = packed_experts(
        stored, steps[:, :, 0] if by_output else steps, None if by_output else block, bits
    )
    attributes = {"bits": bits, "columns": stored.shape[1], "input_blocks": int(bits == 4 and not rounded)}
    inputs = [
        down.inputs[0] if down is not None and rounded else value,
        constant(model.graph, f"{name}.packed", packed, ir.DataType.UINT8, codes),
        constant(model.graph, f"{name}.packed_scales", factors, ir.DataType.FLOAT, None),
        node.inputs[2],
    ]
    put_in_place(model, node, QUANTIZED_EXPERT_LINEAR.name, DOMAIN, inputs, attributes)
