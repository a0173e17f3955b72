"""`slipway::PagedAttention` as com.microsoft.PagedAttention, which ONNX Runtime has for CUDA alone.

Inputs have the same order by design; what the operator does not have is refused by name. Its limits are those of ONNX
Runtime 1.31 (`contrib_ops/cpu/bert/paged_attention_helper.h`, `contrib_ops/cuda/bert/paged_attention.cc`):
heads of keys and values are equally long, a multiple of 8 (of 16 with rotary tables); blocks hold a power of two of at
least 16 tokens; positions follow from lengths, so `position_ids` goes away; rotary tables are of the activations' type.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from model_repo.runtime.attention_metadata import ATTENTION_METADATA, METADATA_INPUT
from model_repo.runtime.errors import BadInput
from pipeline.fuse.matching import dims, float_attribute, integer_attribute
from pipeline.precision.convert import convert
from pipeline.precision.plan import TYPES, Precision
from pipeline.targets.native.nodes import Nodes
from pipeline.targets.native.precision import fitting_plan
from plugins.schemas import DOMAIN, PAGED_ATTENTION

CONTRIB = "com.microsoft"
POOL_TYPES = (ir.DataType.INT8, ir.DataType.FLOAT8E4M3FN)
"""Of pools that are not of the activations' type; their scales go by channel."""

_LAST = PAGED_ATTENTION.input_index(ATTENTION_METADATA)
_NARROW = frozenset({"query", "key", "value", "cos_cache", "sin_cache", "head_sink"})
_POOLS = ("key_cache", "value_cache")
_SCALES = ("k_scale", "v_scale")
_LEAST_BLOCK = 16
_ODD_HEADS = 8


class _Heads(NamedTuple):
    queries: int
    keys: int
    key_size: int
    value_size: int


def lower_to_contrib(model: ir.Model, precision: Precision, keep: Collection[str] = ()) -> None:
    """Renames the attention nodes of a decoder graph, in place, and gives it 16 bit; the rest is standard already.

    keep: names of nodes that stay in float32. Logits stay float32; pools of float32 become 16-bit ones. The graph gets
    the input `attention_metadata`. Raises BadInput for what the operator does not have, and for weights that do not fit
    the type.
    """
    metadata = ir.Value(
        name=METADATA_INPUT.name,
        type=ir.TensorType(ir.DataType.INT32),
        shape=ir.Shape(METADATA_INPUT.shape),
    )
    old = [node for node in model.graph if node.domain == DOMAIN and node.op_type == PAGED_ATTENTION.name]
    model.graph.inputs.append(metadata)
    nodes = [_contrib_node(model.graph, node, metadata) for node in old]
    model.opset_imports.pop(DOMAIN, None)
    model.opset_imports[CONTRIB] = 1
    _narrow(model, nodes, precision, keep)


def check_blocks(model: ir.Model, block_size: int) -> None:
    """Raises BadInput where the operator does not take blocks of so many tokens.

    Attention sinks are only in its FlashAttention, which wants blocks that are multiples of its tile of keys, and in
    the kernel for single tokens, so that a prompt needs the former.
    """
    attention = [
        node for node in model.graph if node.domain == CONTRIB and node.op_type == PAGED_ATTENTION.name
    ]
    for node in attention:
        if not _power_of_two(block_size) or block_size < _LEAST_BLOCK:
            raise BadInput(
                f"target.block_size is {block_size}; com.microsoft.PagedAttention takes a power of two from "
                f"{_LEAST_BLOCK} on. Give --block-size {max(_LEAST_BLOCK, 1 << block_size.bit_length())}"
            )
        quantized = node.inputs[PAGED_ATTENTION.input_index("k_scale")] is not None
        tile = flash_tile(_last_size(node.inputs[PAGED_ATTENTION.input_index("key_cache")]))
        if (
            node.inputs[PAGED_ATTENTION.input_index("head_sink")] is not None
            and not quantized
            and block_size % tile
        ):
            raise BadInput(
                f"attention node {node.name!r} has attention sinks, for which com.microsoft.PagedAttention takes "
                f"blocks of a multiple of {tile} tokens; target.block_size is {block_size}. Give --block-size {tile}"
            )


def flash_tile(head_size: int) -> int:
    """Keys of a tile of its FlashAttention, which blocks have to be a multiple of; others it first gathers."""
    return 256 if head_size <= 64 else 128 if head_size <= 128 else 64


def _contrib_node(graph: ir.Graph, node: ir.Node, metadata: ir.Value) -> ir.Node:
    """`node` renamed, in its place. It writes to its pools in place: they are no outputs."""
    inputs: list[ir.Value | None] = [*node.inputs, *[None] * (len(PAGED_ATTENTION.inputs) - len(node.inputs))]
    heads = _checked(graph, node, inputs)
    attributes: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
    for pool, scale, kind in zip(_POOLS, _SCALES, ("k_quant_type", "v_quant_type"), strict=True):
        given = inputs[PAGED_ATTENTION.input_index(scale)]
        if given is not None:
            by_channel = _by_channel(node, given, heads)
            inputs[PAGED_ATTENTION.input_index(scale)] = by_channel
            attributes[kind] = "PER_CHANNEL"
        stored = inputs[PAGED_ATTENTION.input_index(pool)]
        assert stored is not None
        assert (stored.dtype in POOL_TYPES) == (given is not None), "pools of codes have scales, others none"
    inputs[_LAST] = metadata
    old = node.outputs[0]
    made = ir.node(
        PAGED_ATTENTION.name,
        inputs[: _LAST + 1],
        attributes,
        domain=CONTRIB,
        outputs=[ir.Value(name=old.name, type=old.type, shape=old.shape)],
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    graph.insert_before(node, made)
    old.replace_all_uses_with(made.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return made


def _checked(graph: ir.Graph, node: ir.Node, inputs: list[ir.Value | None]) -> _Heads:
    """Sizes of the node's heads. Raises BadInput for what the operator cannot do."""
    where = f"attention node {node.name!r}"
    given = [p.name for p, value in zip(PAGED_ATTENTION.inputs, inputs, strict=True) if value is not None]
    unknown = [
        name for name in given[:] if PAGED_ATTENTION.input_index(name) > _LAST and name != "position_ids"
    ]
    if unknown:
        raise BadInput(
            f"{where} uses {', '.join(unknown)}, which com.microsoft.PagedAttention does not have; build for target "
            "'onnxruntime'"
        )
    positions = inputs[PAGED_ATTENTION.input_index("position_ids")]
    if positions is not None and positions not in graph.inputs:
        raise BadInput(
            f"{where} turns queries and keys by positions of its own, where com.microsoft.PagedAttention counts a "
            "token's place in its sequence; build for target 'onnxruntime'"
        )
    pools = [inputs[PAGED_ATTENTION.input_index(name)] for name in _POOLS]
    heads = _Heads(
        *(integer_attribute(node, name, 0) for name in ("num_heads", "kv_num_heads")),
        *(_last_size(pool) for pool in pools),
    )
    if heads.key_size != heads.value_size:
        raise BadInput(
            f"{where} has keys of {heads.key_size} and values of {heads.value_size} elements a head; "
            "com.microsoft.PagedAttention takes equal ones. Build for target 'onnxruntime'"
        )
    rotary = bool(integer_attribute(node, "do_rotary", 0))
    multiple = 2 * _ODD_HEADS if rotary else _ODD_HEADS
    if heads.key_size % multiple:
        raise BadInput(
            f"{where} has heads of {heads.key_size} elements; com.microsoft.PagedAttention takes multiples of "
            f"{multiple}{' with rotary tables' if rotary else ''}. Build for target 'onnxruntime'"
        )
    table = inputs[PAGED_ATTENTION.input_index("cos_cache")]
    if table is not None and _last_size(table) % _ODD_HEADS:
        raise BadInput(
            f"{where} turns {2 * _last_size(table)} elements of each head; com.microsoft.PagedAttention takes "
            "multiples of 16. Build for target 'onnxruntime'"
        )
    if float_attribute(node, "softcap", 0.0) < 0:
        raise BadInput(f"{where} has a negative softcap, which com.microsoft.PagedAttention does not take")
    return heads


def _by_channel(node: ir.Node, scales: ir.Value, heads: _Heads) -> ir.Value:
    """Scales [kv_heads] as [kv_heads, 1, head_size], the same for all channels of a head."""
    assert scales.const_value is not None
    array = np.broadcast_to(scales.const_value.numpy()[:, None, None], (heads.keys, 1, heads.key_size))
    return Nodes(node).constant(np.ascontiguousarray(array, np.float32), f"{scales.name}.by_channel")


def _narrow(model: ir.Model, attention: list[ir.Node], precision: Precision, keep: Collection[str]) -> None:
    """Everything in 16 bit that may be, attention and its pools with it."""
    narrow = TYPES[precision]
    planned = fitting_plan(model, precision, keep)
    inputs, values = dict(planned.inputs), set(planned.values)
    for node in attention:
        for name in _POOLS:
            pool = node.inputs[PAGED_ATTENTION.input_index(name)]
            assert pool is not None
            if pool.dtype == ir.DataType.FLOAT:
                pool.type = ir.TensorType(narrow)
        wanted = (*_NARROW, *_POOLS)
        inputs[node] = frozenset(PAGED_ATTENTION.input_index(name) for name in wanted)
        values.add(node.outputs[0])
    convert(model, dataclasses.replace(planned, inputs=inputs, values=frozenset(values)))


def _power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _last_size(value: ir.Value | None) -> int:
    """The last axis of a pool or table, which the export makes a fixed size."""
    size = (dims(value) or ("",))[-1]
    assert isinstance(size, int)
    return size
