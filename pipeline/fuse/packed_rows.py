"""Values of padded texts [batch, length, ...] as rows of their tokens alone [tokens, ...].

What works token by token is computed on the rows; so is attention, by the operator for packed texts. What costs
nothing (ids, positions, masks) stays padded, and its rows are picked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from pipeline.notes import PACKED, SAME_AS, TOKENS
from plugins.schemas import (
    BIAS_GELU,
    DOMAIN,
    GEGLU,
    PACKED_ATTENTION,
    PACKED_LAYOUT,
    SKIP_LAYER_NORMALIZATION,
    SKIP_RMS_NORMALIZATION,
    SWIGLU,
    OperatorSchema,
)

from .matching import (
    Dims,
    constant,
    dims,
    integer_attribute,
    integer_weight,
    integers,
    made_by,
    node_name,
    normalizes_last_axis,
    output,
    rank,
)
from .packed_attention import packed_attention
from .packed_mask import Texts, Unpackable

# fmt: off
_ELEMENTWISE = frozenset((
    "Abs", "Add", "And", "Cast", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Gelu", "Greater",
    "GreaterOrEqual", "HardSigmoid", "HardSwish", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Min", "Mish",
    "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Sigmoid", "Sign", "Sin", "Softplus", "Sqrt", "Sub",
    "Swish", "Tanh", "Where",
))
# fmt: on
"""Operators whose result at a place depends on their operands at that place alone."""
_OWN_BY_ROWS: Mapping[str, int] = {
    SKIP_RMS_NORMALIZATION.name: 2,
    SKIP_LAYER_NORMALIZATION.name: 2,
    SWIGLU.name: 1,
    GEGLU.name: 1,
    BIAS_GELU.name: 1,
}
"""Operators of ours that work row by row: how many of their first inputs are rows."""
_PRODUCTS = frozenset(("MatMul", "Gemm", "Attention", "Conv", "FusedMatMul", "Einsum"))


class PackedRows:
    """Makes packed values of padded ones; each once. New nodes stand at the graph's end until it is sorted."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._graph = texts.graph
        self._made: dict[ir.Value, ir.Value] = {}
        self._at_positions: dict[ir.Value, ir.Value] = {}
        self._costly: dict[ir.Value, bool] = {}
        names = ("rows", "position_ids", "cu_seqlens")
        sizes: tuple[Dims, ...] = (("tokens",), ("tokens",), (f"{texts.batch} + 1",))
        layout = ir.node(
            PACKED_LAYOUT.name,
            [texts.mask],
            domain=DOMAIN,
            outputs=[
                output(f"packed.{name}", ir.DataType.INT32, size)
                for name, size in zip(names, sizes, strict=True)
            ],
            name="packed.layout",
        )
        self._graph.append(layout)
        self._rows, self.positions, self.cu_seqlens = layout.outputs

    def padded(self, value: ir.Value | None) -> bool:
        """Whether `value` has a row for each place of the padded batch."""
        shape = dims(value)
        return shape is not None and shape[:2] == (self._texts.batch, self._texts.length)

    def costly(self, value: ir.Value | None) -> bool:
        """Whether a product, an attention or an embedding is computed for `value`."""
        if value is None:
            return False
        if value not in self._costly:
            node = value.producer()
            self._costly[value] = node is not None and (
                node.op_type in _PRODUCTS
                or (node.op_type == "Gather" and _is_table(node))
                or any(self.costly(given) for given in node.inputs)
            )
        return self._costly[value]

    def add(
        self,
        node: ir.Node,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, ir.Attr],
        shapes: Sequence[Dims | None],
        operator: OperatorSchema | None = None,
    ) -> None:
        """`node` with other inputs, attributes and shapes of its results, which are the packed forms of its own.

        `operator`: one of ours in its place.
        """
        results = []
        for old, shape in zip(node.outputs, shapes, strict=True):
            new = output(f"{old.name}_packed" if old.name else "", old.dtype, shape)
            if old.name:
                new.metadata_props[SAME_AS] = old.metadata_props.get(SAME_AS, old.name)
                new.metadata_props[PACKED] = TOKENS
                self._made[old] = new
            results.append(new)
        self._graph.append(
            ir.Node(
                node.domain if operator is None else DOMAIN,
                node.op_type if operator is None else operator.name,
                inputs,
                list(attributes.values()),
                outputs=results,
                name=f"{node_name(node)}_packed",
                metadata_props=dict(node.metadata_props),
            )
        )

    def packed(self, value: ir.Value | None) -> ir.Value:
        """Rows [tokens, ...] of `value` [batch, length, ...]. Raises Unpackable."""
        assert value is not None
        if value in self._made:
            return self._made[value]
        if not self.padded(value):
            raise Unpackable(f"{value.name} has shape {dims(value)}, not a row for each token")
        node = value.producer()
        if node is None or not self.costly(value):
            self._made[value] = self._picked(value, self._rows, 2)
        elif not self._by_rows(node):
            raise Unpackable(f"{node.op_type} {node_name(node)} does not work token by token")
        return self._made[value]

    def _picked(self, value: ir.Value, places: ir.Value, axes: int) -> ir.Value:
        """Elements of `value` at `places` of its first `axes` axes, taken as one."""
        shape = dims(value) or ()
        rest = shape[axes:]
        if not all(isinstance(size, int) for size in rest):
            raise Unpackable(f"{value.name} has shape {shape}: its rows have no fixed size")
        flat = value
        if axes > 1:
            target = integer_weight(self._graph, [-1, *(int(size) for size in rest)], "shape")
            flat = self._node("Reshape", [value, target], f"{value.name}_rows", value.dtype, ("rows", *rest))
        return self._node("Gather", [flat, places], f"{value.name}_packed", value.dtype, ("tokens", *rest))

    def _node(
        self, operator: str, inputs: list[ir.Value], name: str, dtype: ir.DataType | None, shape: Dims
    ) -> ir.Value:
        node = ir.node(operator, inputs, outputs=[output(name, dtype, shape)], name=name)
        self._graph.append(node)
        return node.outputs[0]

    def at_positions(self, value: ir.Value) -> ir.Value:
        """Rows [tokens, ...] of `value` [1, length, ...] or [length, ...]: of each token's position in its text."""
        if value not in self._at_positions:
            table = made_by(value, "Gather")
            if _counts_positions(value):
                found = self.positions
            elif table is not None and table.inputs[0] is not None and _is_table(table):
                assert table.inputs[1] is not None
                rest = (dims(table.inputs[0]) or ())[1:]
                name = f"{value.name}_packed"
                inputs = [table.inputs[0], self.at_positions(table.inputs[1])]
                found = self._node("Gather", inputs, name, value.dtype, ("tokens", *rest))
            else:
                found = self._picked(
                    value, self.positions, 1 if (dims(value) or ())[0] == self._texts.length else 2
                )
            self._at_positions[value] = found
        return self._at_positions[value]

    def _operand(self, value: ir.Value | None, axes: int) -> ir.Value | None:
        """An operand that is broadcast to a result of `axes` axes, for the packed result of one axis less."""
        shape = dims(value)
        if value is None:
            return None
        if self.padded(value) and rank(value) == axes:
            return self.packed(value)
        length = self._texts.length
        if shape is not None and shape[-axes:][:2] == (1, length) and len(shape) == axes:
            return self.at_positions(value)
        if shape is not None and len(shape) == axes - 1 and shape[0] == length:
            return self.at_positions(value)
        if shape is None or len(shape) > axes - 2 or not all(isinstance(size, int) for size in shape):
            raise Unpackable(f"{value.name} of shape {shape} is no operand by tokens")
        return value

    def _by_rows(self, node: ir.Node) -> bool:
        """Computes the packed results of `node`; False when it does not work token by token. Raises Unpackable."""
        shape = dims(node.outputs[0]) or ()
        kind, rest = node.op_type, ("tokens", *shape[2:])
        first = node.inputs[0] if node.inputs else None
        if node.domain == DOMAIN and kind in _OWN_BY_ROWS:
            rows = _OWN_BY_ROWS[kind]
            inputs = [
                *(self._operand(value, len(shape)) for value in node.inputs[:rows]),
                *node.inputs[rows:],
            ]
            self.add(node, inputs, node.attributes, [rest] * len(node.outputs))
        elif node.domain != "" or first is None:
            return False
        elif kind in _ELEMENTWISE:
            inputs = [self._operand(value, len(shape)) for value in node.inputs]
            self.add(node, inputs, node.attributes, [rest])
        elif kind in ("LayerNormalization", "RMSNormalization") and normalizes_last_axis(node, first):
            if any(value.uses() for value in node.outputs[1:]):
                return False
            attributes = {**node.attributes, "axis": ir.AttrInt64("axis", -1)}
            self.add(node, [self.packed(first), *node.inputs[1:]], attributes, [rest] * len(node.outputs))
        elif kind == "MatMul" and self.padded(first) and rank(node.inputs[1]) == 2:
            self.add(node, [self.packed(first), node.inputs[1]], node.attributes, [rest])
        elif kind == "Gather" and _is_table(node) and self.padded(node.inputs[1]):
            self.add(node, [first, self.packed(node.inputs[1])], node.attributes, [rest])
        elif kind == "Split" and self.padded(first) and _axis(node, len(shape)) == len(shape) - 1 > 1:
            shapes: list[Dims] = [("tokens", *(dims(value) or ())[2:]) for value in node.outputs]
            attributes = {**node.attributes, "axis": ir.AttrInt64("axis", -1)}
            self.add(node, [self.packed(first), *node.inputs[1:]], attributes, shapes)
        elif kind == "Reshape" and self.padded(first) and all(isinstance(size, int) for size in shape[2:]):
            target = integer_weight(self._graph, [-1, *(int(size) for size in shape[2:])], "shape")
            self.add(node, [self.packed(first), target], {}, [rest])
        elif kind == "Attention" and len(shape) == 3:
            attention = packed_attention(self, self._texts, node)
            self.add(node, attention.inputs, attention.attributes, [rest], PACKED_ATTENTION)
        else:
            return False
        return True


def _is_table(node: ir.Node) -> bool:
    """Whether a Gather looks rows of a constant matrix up."""
    data = node.inputs[0]
    return (
        integer_attribute(node, "axis", 0) == 0
        and rank(data) == 2
        and data is not None
        and data.is_initializer()
    )


def _axis(node: ir.Node, axes: int) -> int:
    axis = integer_attribute(node, "axis", 0)
    return axis + axes if axis < 0 else axis


def _counts_positions(value: ir.Value) -> bool:
    """Whether `value` [1, length] or [length] is 0, 1, 2, ..., as a Range or as part of a constant."""
    counted = made_by(value, "Range")
    if counted is not None:
        start, step = integers(counted.inputs[0]), integers(counted.inputs[2])
        return start == (0,) and step == (1,)
    part = made_by(value, "Slice")
    if part is None:
        return False
    numbers = constant(part.inputs[0])
    begin, steps = integers(part.inputs[1]), integers(part.inputs[4]) if len(part.inputs) > 4 else (1,)
    return (
        numbers is not None
        and bool(np.array_equal(numbers.ravel(), np.arange(numbers.size)))
        and (numbers.ndim == 1 or numbers.shape[0] == 1)
        and begin == (0,)
        and steps == (1,)
    )
