"""From the standard's Attention over padded rows to `slipway::PackedAttention` over the rows of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import onnx_ir as ir

from plugins.schemas import PACKED_ATTENTION

from .matching import dims, float_attribute, integer_attribute, made_by, node_name
from .packed_mask import Texts, Unpackable, unrepeated, visible


class Rows(Protocol):
    """Where packed values come from (`packed_rows.PackedRows`)."""

    positions: ir.Value
    cu_seqlens: ir.Value

    def packed(self, value: ir.Value | None) -> ir.Value:
        """Rows [tokens, ...] of `value` [batch, length, ...]. Raises Unpackable."""
        ...


class Packed(NamedTuple):
    """Inputs and attributes of a PackedAttention node."""

    inputs: Sequence[ir.Value | None]
    attributes: Mapping[str, ir.Attr]


def packed_attention(rows: Rows, texts: Texts, node: ir.Node) -> Packed:
    """PackedAttention for an Attention of rows [batch, length, heads * size]. Raises Unpackable.

    Rotary embeddings of queries and keys come along, and so does the Split of packed queries, keys and values.
    """
    others = sorted(set(node.attributes) - {"q_num_heads", "kv_num_heads", "scale"})
    others += ["a cache"] if any(value is not None for value in node.inputs[4:]) else []
    others += ["further results"] if any(value.uses() for value in node.outputs[1:]) else []
    if others:
        raise Unpackable(f"Attention {node_name(node)} has {', '.join(others)}")
    seen = visible(texts, node.inputs[3] if len(node.inputs) > 3 else None)
    heads, kv_heads = (integer_attribute(node, name, 0) for name in ("q_num_heads", "kv_num_heads"))
    numbers = {
        "num_heads": heads,
        "kv_num_heads": kv_heads,
        "left_window": seen.left,
        "right_window": seen.right,
    }
    given: dict[str, ir.Value | None] = {parameter.name: None for parameter in PACKED_ATTENTION.inputs}
    given |= {"cu_seqlens": rows.cu_seqlens, "bias": seen.bias}

    operands = list(node.inputs[:3])
    turned = _turned(texts, node)
    if turned is not None:
        operands[:2] = turned.operands
        numbers["rotary_interleaved"] = turned.interleaved
        given |= {"cos_cache": turned.cos, "sin_cache": turned.sin, "position_ids": rows.positions}
    together = _split_of(operands, (heads, kv_heads, kv_heads))
    if together is not None:
        given["query"] = rows.packed(together)
    else:
        given |= {
            name: rows.packed(value) for name, value in zip(("query", "key", "value"), operands, strict=True)
        }
    inputs = list(given.values())
    while inputs[-1] is None:
        inputs.pop()
    attributes: dict[str, ir.Attr] = {name: ir.AttrInt64(name, number) for name, number in numbers.items()}
    attributes["scale"] = ir.AttrFloat32("scale", float_attribute(node, "scale", 0.0))
    return Packed(inputs, attributes)


class _Turned(NamedTuple):
    """Queries and keys before their rotary embedding, and its tables [1, length, size / 2]."""

    operands: tuple[ir.Value | None, ir.Value | None]
    cos: ir.Value
    sin: ir.Value
    interleaved: int


def _turned(texts: Texts, attention: ir.Node) -> _Turned | None:
    """The rotary embedding of an Attention's queries and keys; None when it has none. Raises Unpackable."""
    query, key = (made_by(value, "RotaryEmbedding") for value in attention.inputs[:2])
    if query is None or key is None:
        return None
    tables = [
        tuple(unrepeated(table) for table in node.inputs[1:] if table is not None) for node in (query, key)
    ]
    interleaved = {integer_attribute(node, "interleaved", 0) for node in (query, key)}
    of_positions = all((dims(table) or ())[:2] == (1, texts.length) for table in tables[0])
    if tables[0] != tables[1] or len(tables[0]) != 2 or not of_positions or len(interleaved) > 1:
        raise Unpackable(
            f"queries and keys of {node_name(attention)} are not turned by one table of positions"
        )
    return _Turned((query.inputs[0], key.inputs[0]), *tables[0], interleaved.pop())


def _split_of(operands: Sequence[ir.Value | None], heads: Sequence[int]) -> ir.Value | None:
    """The packed query, key and value that `operands` are the parts of, in order, with heads of one size."""
    split = made_by(operands[0], "Split")
    if split is None or tuple(split.outputs) != tuple(operands):
        return None
    widths = [(dims(value) or (0,))[-1] for value in operands]
    sizes = {
        width // count for width, count in zip(widths, heads, strict=True) if isinstance(width, int) and count
    }
    return split.inputs[0] if len(sizes) == 1 and all(isinstance(width, int) for width in widths) else None
