"""`slipway::paged_attention` (torch, heads apart) becomes the node `slipway::PagedAttention` (rows flat)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18 as op  # the exporter translates at 18 and converts to the opset asked for
from torch.onnx._internal.exporter._constants import TORCHLIB_OPSET
from torch.onnx._internal.exporter._registration import ONNXRegistry

import plugins.expert_ops  # registers torch.ops.slipway.expert_linear
import plugins.ops  # noqa: F401  registers torch.ops.slipway.paged_attention
from plugins.schemas import EXPERT_LINEAR, PAGED_ATTENTION, onnxscript_op

Value = Any
"""A symbolic tensor of onnxscript's tracing; its interface is not typed."""


@functools.cache
def operators(opset: int) -> ONNXRegistry:
    """The ONNX functions of torch's operators and ours, built once an opset: it takes half a second. Only read."""
    registry = ONNXRegistry.from_torchlib(opset_version=max(opset, TORCHLIB_OPSET))
    for operator, function in translation_table().items():
        registry.register_op(operator, function)
    return registry


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export(custom_translation_table=...)`."""
    return {
        torch.ops.slipway.paged_attention.default: _paged_attention,
        torch.ops.slipway.expert_linear.default: _expert_linear,
    }


def _paged_attention(
    query: Value,
    key: Value,
    value: Value,
    key_cache: Value,
    value_cache: Value,
    cu_seqlens: Value,
    past_lens: Value,
    block_table: Value,
    slot_mapping: Value,
    head_sink: Value,
    alibi_slopes: Value,
    distance_bias: Value,
    scale: float,
    softcap: float,
    local_window_size: int,
) -> tuple[Value, Value, Value]:
    """Flattens the heads of query, key and value ([tokens, heads, size] -> [tokens, heads * size])."""
    heads, kv_heads, value_dim = int(query.shape[1]), int(key.shape[1]), int(value.shape[2])
    given = {
        "query": _reshape(query, [0, -1]),
        "key": _reshape(key, [0, -1]),
        "value": _reshape(value, [0, -1]),
        "key_cache": key_cache,
        "value_cache": value_cache,
        "cumulative_sequence_length": cu_seqlens,
        "past_seqlens": past_lens,
        "block_table": block_table,
        "slot_mapping": slot_mapping,
        "head_sink": head_sink,
        "alibi_slopes": alibi_slopes,
        "distance_bias": distance_bias,
    }
    inputs = [given.get(parameter.name) for parameter in PAGED_ATTENTION.inputs]
    while inputs[-1] is None:
        inputs.pop()
    rows, key_pool, value_pool = onnxscript_op(PAGED_ATTENTION)(
        *inputs,
        num_heads=heads,
        kv_num_heads=kv_heads,
        scale=scale,
        softcap=softcap,
        local_window_size=local_window_size,
    )
    # The exporter knows no shape function of the operator; what it does not know, later stages cannot use.
    rows.dtype, rows.shape = query.dtype, ir.Shape([query.shape[0], heads * value_dim])
    return _reshape(rows, [0, heads, value_dim]), key_pool, value_pool


def _expert_linear(rows: Value, weight: Value, expert_ids: Value, transposed: bool) -> Value:
    result = onnxscript_op(EXPERT_LINEAR)(rows, weight, expert_ids, transposed=int(transposed))
    result.dtype = rows.dtype
    result.shape = ir.Shape([rows.shape[0], weight.shape[2 if transposed else 1]])
    return result


def _reshape(value: Value, sizes: list[int]) -> Value:
    """0 keeps a size, -1 takes what is left."""
    shape: Value = op.Constant(value_ints=sizes)
    return op.Reshape(value, shape)
