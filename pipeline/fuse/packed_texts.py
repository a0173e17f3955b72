"""An encoder's padded texts are computed packed: the rows of tokens alone, one text after the other.

The graph keeps its inputs and outputs: ids and mask [batch, length] come in padded, which costs nothing, and what
comes out is one row a text, or padded again. All between works token by token, or within texts by
`slipway::PackedAttention`, so that padding is never computed and a text's numbers do not depend on its company. Either
all of a graph can be packed, or nothing is: the reason is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import onnx_ir as ir

from pipeline.notes import PACKED, ZEROS
from plugins.schemas import DOMAIN, PACKED_POOL, UNPACKED_ROWS, VERSION

from .matching import dims, integer_attribute, integers, made_by, node_name, output, rank, replace
from .packed_mask import EXAMPLE, Texts, Unpackable, unrepeated
from .packed_rows import PackedRows
from .rule import Matches, NearMiss, Rule

SUM, MAXIMUM, FIRST, LAST = range(4)
"""Kinds of PackedPool."""


class PackedTexts(Rule):
    """Counts the attentions that are packed."""

    name: ClassVar[str] = "packed_texts"

    def rewrite(self, model: ir.Model) -> Matches:
        """Nodes that are no longer read are left behind, those made for a graph that cannot be packed too."""
        attentions = [
            node for node in model.graph if node.op_type in ("Attention", "Softmax") and node.domain == ""
        ]
        if not attentions or not any(value.name == "attention_mask" for value in model.graph.inputs):
            return Matches(0)
        try:
            texts = Texts(model)
            own = next(
                (node for node in attentions if node.op_type == "Softmax" and _over_keys(node, texts)), None
            )
            if own is not None:
                raise Unpackable(f"the softmax {node_name(own)} is in no attention that fuses")
            rows = PackedRows(texts)
            ends = _Ends(rows, texts).found
        except Unpackable as reason:
            return Matches(0, (NearMiss(node_name(attentions[0]), str(reason)),))
        for old, new in ends.items():
            replace(old, new)
        model.opset_imports[DOMAIN] = VERSION
        return Matches(sum(node.op_type == "Attention" for node in attentions))


def _over_keys(softmax: ir.Node, texts: Texts) -> bool:
    """Whether a softmax is over the tokens of a text."""
    shape = dims(softmax.outputs[0])
    return shape is None or texts.length in shape[2:]


class _Ends:
    """Where the rows of tokens end: values that are no longer by tokens, and what takes their place."""

    def __init__(self, rows: PackedRows, texts: Texts) -> None:
        """Raises Unpackable."""
        self.found: dict[ir.Value, ir.Value] = {}
        self._rows, self._texts = rows, texts
        self._visited: set[ir.Value] = set()
        for value in texts.graph.outputs:
            self._visit(value)

    def _visit(self, value: ir.Value | None) -> None:
        """Finds the ends on the way from `value` up to the inputs."""
        if value is None or value in self._visited or not self._rows.costly(value):
            return
        self._visited.add(value)
        node = value.producer()
        assert node is not None
        if self._rows.padded(value):
            self.found[value] = self._unpacked(value)
        elif any(self._rows.padded(given) and self._rows.costly(given) for given in node.inputs):
            self.found[value] = self._pooled(value, node)
        else:
            for given in node.inputs:
                self._visit(given)

    def _unpacked(self, value: ir.Value) -> ir.Value:
        """An output of the graph [batch, length, ...], with zeros for padding."""
        inputs = [self._rows.packed(value), self._rows.cu_seqlens, self._texts.mask]
        new = self._own(UNPACKED_ROWS.name, inputs, {}, value, dims(value) or ())
        new.metadata_props[PACKED] = ZEROS
        return new

    def _pooled(self, value: ir.Value, node: ir.Node) -> ir.Value:
        """PackedPool in the place of a node that makes one row a text. Raises Unpackable."""
        pool = self._first(node) or self._sum(node) or self._maximum(node) or self._last(node)
        shape = dims(value)
        if pool is None or shape is None:
            raise Unpackable(f"{node.op_type} {node_name(node)} is no pooling that is known")
        inputs = [self._rows.packed(pool.rows), self._rows.cu_seqlens]
        width = (dims(pool.rows) or ())[-1]
        pooled = self._own(PACKED_POOL.name, inputs, {"kind": pool.kind}, value, (self._texts.batch, width))
        if shape == (self._texts.batch, width):
            return pooled
        axes = ir.Value(
            name=f"{value.name}.axes",
            type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape((1,)),
            const_value=ir.tensor([1], dtype=ir.DataType.INT64, name=f"{value.name}.axes"),
        )
        self._texts.graph.register_initializer(axes)
        apart = ir.node(
            "Unsqueeze",
            [pooled, axes],
            outputs=[output(f"{value.name}_apart", value.dtype, shape)],
            name=f"{node_name(node)}_apart",
        )
        self._texts.graph.append(apart)
        return apart.outputs[0]

    def _own(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        attributes: dict[str, int],
        old: ir.Value,
        shape: tuple[int | str, ...],
    ) -> ir.Value:
        node = old.producer()
        assert node is not None
        new = ir.node(
            operator,
            inputs,
            attributes,
            domain=DOMAIN,
            outputs=[output(f"{old.name}_of_packed", old.dtype, shape)],
            name=f"{node_name(node)}_of_packed",
            metadata_props=dict(node.metadata_props),
        )
        self._texts.graph.append(new)
        return new.outputs[0]

    def _first(self, node: ir.Node) -> _Pool | None:
        """The first token's row: Gather of index 0 along the length."""
        if node.op_type != "Gather" or integer_attribute(node, "axis", 0) != 1:
            return None
        index = node.inputs[1]
        return _Pool(node.inputs[0], FIRST) if integers(index) == (0,) and rank(index) == 0 else None

    def _sum(self, node: ir.Node) -> _Pool | None:
        """ReduceSum along the length of rows times a mask, which is zero at padding."""
        if not _reduces_length(node, "ReduceSum"):
            return None
        product = made_by(node.inputs[0], "Mul")
        for x, mask in () if product is None else (product.inputs, tuple(reversed(product.inputs))):
            if x is not None and mask is not None and self._flag(mask):
                if self._texts.is_padding(mask, 1, 0):
                    return _Pool(x, SUM)
                if self._is_zero_at_padding(mask):
                    return _Pool(node.inputs[0], SUM)
        return None

    def _maximum(self, node: ir.Node) -> _Pool | None:
        """ReduceMax along the length of rows that are the lowest number at padding."""
        filled = made_by(node.inputs[0], "Where") if _reduces_length(node, "ReduceMax") else None
        if filled is None or filled.inputs[0] is None or not self._flag(filled.inputs[0]):
            return None
        for place, at_tokens in ((2, False), (1, True)):
            if self._texts.is_padding(filled.inputs[0], at_tokens, not at_tokens):
                return _Pool(filled.inputs[place], MAXIMUM)
        return None

    def _last(self, node: ir.Node) -> _Pool | None:
        """GatherElements along the length with the index of each text's last token."""
        if (
            node.op_type != "GatherElements"
            or integer_attribute(node, "axis", 0) != 1
            or node.inputs[1] is None
        ):
            return None
        found = self._texts.computed(unrepeated(node.inputs[1]), EXAMPLE)
        same = (
            found.ndim == 3
            and found.shape[:2] == (len(EXAMPLE), 1)
            and np.array_equal(
                found[:, 0], np.broadcast_to(np.array(EXAMPLE)[:, None] - 1, found[:, 0].shape)
            )
        )
        return _Pool(node.inputs[0], LAST) if same else None

    def _flag(self, value: ir.Value) -> bool:
        """Whether a value is one number for each place of the batch, and cheap to compute."""
        shape = dims(value)
        return shape == (self._texts.batch, self._texts.length, 1) and not self._rows.costly(value)

    def _is_zero_at_padding(self, value: ir.Value) -> bool:
        found = self._texts.computed(value, EXAMPLE)
        return not any(found[text, length:].any() for text, length in enumerate(EXAMPLE))


class _Pool(NamedTuple):
    """Padded rows [batch, length, width], and the kind of PackedPool that makes one of each text's."""

    rows: ir.Value | None
    kind: int


def _reduces_length(node: ir.Node, operator: str) -> bool:
    """Whether a reduction is along the length, and drops it."""
    axes = integers(node.inputs[1]) if len(node.inputs) > 1 else None
    shape = dims(node.inputs[0])
    return (
        node.op_type == operator
        and shape is not None
        and len(shape) == 3
        and axes in ((1,), (-2,))
        and not integer_attribute(node, "keepdims", 1)
    )
