"""The gate's and the up projection's products become one, split into its halves."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from .gating import gated
from .matching import dims, insert_before, node_name, output, replace
from .packing import common_name, obstacle, pack, product
from .rule import Matches, NearMiss, Rule


class GateUp(Rule):
    """activation(x @ gate) * (x @ up), with or without biases; the split stays for the next rule."""

    name: ClassVar[str] = "gate_up"

    def rewrite(self, model: ir.Model) -> Matches:
        """Packs gate first, up second, where they have one size and nobody else reads them."""
        graph = model.graph
        count, missed = 0, []
        for node in list(graph):
            found = gated(node)
            gate, up = (None, None) if found is None else (product(found.gate), product(found.up))
            if found is None or gate is None or up is None:
                continue
            reason = found.obstacle() or obstacle([gate, up], [found.product, *found.inner])
            if reason is None and gate.width != up.width:
                reason = f"gate and up have {gate.width} and {up.width} elements"
            if reason is not None:
                missed.append(NearMiss(node_name(node), reason))
                continue
            name = common_name([gate.weight, up.weight], node_name(node))
            both = pack(graph, [gate, up], node, f"{name}.gate_up")
            halves = [
                output(f"{name}.{half}", item.result.dtype, dims(item.result))
                for half, item in (("gate", gate), ("up", up))
            ]
            insert_before(
                node,
                ir.node(
                    "Split",
                    [both],
                    {"axis": -1, "num_outputs": 2},
                    outputs=halves,
                    name=f"{name}.gate_up.split",
                ),
            )
            replace(gate.result, halves[0])
            replace(up.result, halves[1])
            count += 1
        return Matches(count, tuple(missed))
