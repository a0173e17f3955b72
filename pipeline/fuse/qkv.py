"""Query, key and value: three products become one.

Its result is the packed query of the paged attention operator; the standard's Attention reads it in three parts.
"""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from plugins.schemas import DOMAIN, PAGED_ATTENTION

from .matching import (
    dims,
    insert_before,
    integer_attribute,
    integer_weight,
    made_by,
    node_name,
    note_same,
    only_reader,
    output,
    rank,
)
from .packing import common_name, obstacle, pack, product
from .rule import Matches, NearMiss, Rule

QUERY, KEY, VALUE = (PAGED_ATTENTION.input_index(name) for name in ("query", "key", "value"))
KEY_CACHE, VALUE_CACHE = (PAGED_ATTENTION.input_index(name) for name in ("key_cache", "value_cache"))


class Qkv(Rule):
    """Needs the attention to read the products themselves, so it comes after rotary embedding is fused."""

    name: ClassVar[str] = "qkv"

    def rewrite(self, model: ir.Model) -> Matches:
        """Packs query, key, value in this order; for paged attention keys and values need one head size."""
        count, missed = 0, []
        for node in list(model.graph):
            if node.op_type == "Attention" and node.domain == "":
                reason = _packed_dense(model.graph, node)
                if reason is None:
                    count += 1
                else:
                    missed.append(NearMiss(node_name(node), reason))
                continue
            if node.op_type != PAGED_ATTENTION.name or node.domain != DOMAIN or node.inputs[KEY] is None:
                continue
            whole = _whole(node)
            if whole is not None and _different_head_sizes(node) is None:
                _read_packed(node, whole)
                count += 1
                continue
            found = [product(node.inputs[index]) for index in (QUERY, KEY, VALUE)]
            products = [item for item in found if item is not None]
            if len(products) < 3:
                missed.append(NearMiss(node_name(node), "query, key and value are not all plain products"))
                continue
            reason = obstacle(products, [node]) or _different_head_sizes(node)
            if reason is not None:
                missed.append(NearMiss(node_name(node), reason))
                continue
            name = common_name([item.weight for item in products], node_name(node))
            both = pack(model.graph, products, node, f"{name}.qkv")
            _read_packed(node, both)
            count += 1
        return Matches(count, tuple(missed))


def _whole(node: ir.Node) -> ir.Value | None:
    """The packed value whose Split gives query, key and value, in this order, to `node` alone."""
    split = made_by(node.inputs[QUERY], "Split")
    if split is None or tuple(split.outputs) != tuple(node.inputs[index] for index in (QUERY, KEY, VALUE)):
        return None
    last = (-1, (rank(split.inputs[0]) or 0) - 1)
    if integer_attribute(split, "axis", 0) not in last or any(
        only_reader(part) is not node for part in split.outputs
    ):
        return None
    return split.inputs[0]


def _read_packed(node: ir.Node, whole: ir.Value) -> None:
    """Gives paged attention its packed query."""
    node.replace_input_with(QUERY, whole)
    node.replace_input_with(KEY, None)
    node.replace_input_with(VALUE, None)


def _packed_dense(graph: ir.Graph, node: ir.Node) -> str | None:
    """Gives the standard's Attention the parts of one product; the reason when it cannot."""
    products = [item for item in map(product, node.inputs[:3]) if item is not None]
    if len(products) < 3:
        return "query, key and value are not all plain products"
    reason = obstacle(products, [node])
    if reason is not None:
        return reason
    name = common_name([item.weight for item in products], node_name(node))
    both = pack(graph, products, node, f"{name}.qkv")
    widths = [item.width for item in products]
    parts = [
        output(f"{name}.{part}", item.result.dtype, dims(item.result))
        for part, item in zip(("query", "key", "value"), products, strict=True)
    ]
    sizes = [] if len(set(widths)) == 1 else [integer_weight(graph, widths, "sizes")]
    split = ir.node(
        "Split",
        [both, *sizes],
        {"axis": -1} if sizes else {"axis": -1, "num_outputs": 3},
        outputs=parts,
        name=f"{name}.qkv.split",
    )
    insert_before(node, split)
    for index, (part, item) in enumerate(zip(parts, products, strict=True)):
        note_same(part, item.result)
        node.replace_input_with(index, part)
    return None


def _different_head_sizes(node: ir.Node) -> str | None:
    keys, values = dims(node.inputs[KEY_CACHE]), dims(node.inputs[VALUE_CACHE])
    if keys is None or values is None or keys[-1] != values[-1]:
        return "keys and values have different head sizes: the operator takes them packed only when equal"
    return None
