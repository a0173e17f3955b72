"""A node of Slipway's plugin FlashAttention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import onnx_ir as ir

from model_repo.runtime.errors import BadInput
from pipeline.fuse.matching import dims
from plugins.tensorrt import names

_MULTIPLE, _LARGEST = 8, 256
"""Of head sizes, as the kernel wants them."""


class Rows(NamedTuple):
    """query [rows, heads * size], key and value [rows, kv_heads * size], or all three in `query`, side by side."""

    query: ir.Value
    key: ir.Value | None
    value: ir.Value | None
    heads: int
    kv_heads: int


def flash_attention(
    node: ir.Node, rows: Rows, starts: ir.Value, bias: ir.Value | None, attributes: Mapping[str, float | int]
) -> ir.Node:
    """The plugin's node before `node`, named as it is. starts: int32 [sequences + 1]. attributes: the kernel's.

    Raises BadInput for heads that the kernel does not take.
    """
    _check_heads(node, rows)
    inputs = {"query": rows.query, "key": rows.key, "value": rows.value}
    inputs |= {"cu_seqlens_q": starts, "cu_seqlens_k": starts, "bias": bias}
    given = {name: value for name, value in inputs.items() if value is not None}
    made = ir.node(
        names.FLASH_ATTENTION,
        list(given.values()),
        {
            **attributes,
            "num_heads": rows.heads,
            "kv_num_heads": rows.kv_heads,
            names.INPUTS: ",".join(given),
            names.PLUGIN_VERSION: names.VERSION,
            names.PLUGIN_NAMESPACE: names.NAMESPACE,
        },
        domain=names.DOMAIN,
        outputs=[ir.Value(name=f"{node.outputs[0].name}.rows", type=rows.query.type)],
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    graph.insert_before(node, made)
    return made


def _check_heads(node: ir.Node, rows: Rows) -> None:
    width = (dims(rows.query) or (0,))[-1]
    assert isinstance(width, int)
    size = width // (rows.heads if rows.key is not None else rows.heads + 2 * rows.kv_heads)
    if size % _MULTIPLE or size > _LARGEST:
        raise BadInput(
            f"attention {node.name!r} has heads of {size}; the plugin FlashAttention takes multiples of {_MULTIPLE} up "
            f"to {_LARGEST}. Leave target.attention at 'native'"
        )
