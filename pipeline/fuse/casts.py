"""Chains of casts: what a later cast undoes, or would have done alone."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from .matching import dims, insert_before, made_by, node_name, output, replace
from .rule import Matches, NearMiss, Rule

_KINDS = {
    **dict.fromkeys(
        (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE), "float"
    ),
    **dict.fromkeys((ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64), "int"),
    **dict.fromkeys((ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64), "uint"),
    ir.DataType.BOOL: "bool",
}
_FLOAT_DIGITS = {
    ir.DataType.FLOAT16: (11, 5),
    ir.DataType.BFLOAT16: (8, 8),
    ir.DataType.FLOAT: (24, 8),
    ir.DataType.DOUBLE: (53, 11),
}
"""Bits of significand and of exponent."""


class Casts(Rule):
    """A cast to the type that a value has goes; of two casts the first goes when it loses nothing."""

    name: ClassVar[str] = "casts"

    def rewrite(self, model: ir.Model) -> Matches:
        """Counts the casts that were passed over."""
        count, missed = 0, []
        for node in list(model.graph):
            if node.op_type != "Cast" or node.domain != "":
                continue
            source, result = node.inputs[0], node.outputs[0]
            target = ir.DataType(node.attributes["to"].as_int())
            if source is None or source.dtype is None:
                continue
            if source.dtype == target:
                if result.is_graph_output() and (source.is_graph_input() or source.is_graph_output()):
                    continue
                replace(result, source)
                count += 1
                continue
            inner = made_by(source, "Cast")
            first = None if inner is None else inner.inputs[0]
            if first is None or first.dtype is None:
                continue
            if not lossless(first.dtype, source.dtype):
                missed.append(
                    NearMiss(
                        node_name(node), f"the cast before it, {first.dtype} to {source.dtype}, loses digits"
                    )
                )
                continue
            if first.dtype == target:
                if result.is_graph_output() and (first.is_graph_input() or first.is_graph_output()):
                    continue
                replace(result, first)
            else:
                cast = ir.node(
                    "Cast",
                    [first],
                    dict(node.attributes),
                    outputs=[output(f"{result.name}_direct", target, dims(result))],
                    name=node_name(node),
                    metadata_props=dict(node.metadata_props),
                )
                replace(result, insert_before(node, cast))
            count += 1
        return Matches(count, tuple(missed))


def lossless(narrow: ir.DataType, wide: ir.DataType) -> bool:
    """Whether every value of `narrow` is a value of `wide`."""
    before, after = _KINDS.get(narrow), _KINDS.get(wide)
    if before is None or after is None:
        return False
    if narrow == wide or before == "bool":
        return True
    if before == "float":
        return after == "float" and all(
            a <= b for a, b in zip(_FLOAT_DIGITS[narrow], _FLOAT_DIGITS[wide], strict=True)
        )
    bits = narrow.bitwidth - (before == "int")
    if after == "float":
        return bits <= _FLOAT_DIGITS[wide][0] and bits < 2 ** (_FLOAT_DIGITS[wide][1] - 1)
    if after == "bool" or (before == "int" and after == "uint"):
        return False
    return bits <= wide.bitwidth - (after == "int")
