"""Query, key and value: three products become one, the packed query of the attention operator."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from plugins.schemas import DOMAIN, PAGED_ATTENTION

from .matching import dims, node_name
from .packing import common_name, obstacle, pack, product
from .rule import Matches, NearMiss, Rule

QUERY, KEY, VALUE = (PAGED_ATTENTION.input_index(name) for name in ("query", "key", "value"))
KEY_CACHE, VALUE_CACHE = (PAGED_ATTENTION.input_index(name) for name in ("key_cache", "value_cache"))


class Qkv(Rule):
    """Needs the attention to read the products themselves, so it comes after rotary embedding is fused."""

    name: ClassVar[str] = "qkv"

    def rewrite(self, model: ir.Model) -> Matches:
        """Packs query, key, value in this order, where keys and values have one head size."""
        count, missed = 0, []
        for node in list(model.graph):
            if node.op_type != PAGED_ATTENTION.name or node.domain != DOMAIN or node.inputs[KEY] is None:
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
            node.replace_input_with(QUERY, both)
            node.replace_input_with(KEY, None)
            node.replace_input_with(VALUE, None)
            count += 1
        return Matches(count, tuple(missed))


def _different_head_sizes(node: ir.Node) -> str | None:
    keys, values = dims(node.inputs[KEY_CACHE]), dims(node.inputs[VALUE_CACHE])
    if keys is None or values is None or keys[-1] != values[-1]:
        return "keys and values have different head sizes: the operator takes them packed only when equal"
    return None
