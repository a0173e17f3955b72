"""Convolutions of a quantized graph as ONNX Runtime's integer operators.

A convolution whose result is only rounded, perhaps after ReLU and max pooling, becomes QLinearConv, which gives codes:

    rounded(ReLU(y)) = rounded(y) where zero is the lowest code;  rounded(max(y)) = max(rounded(y))

Any other becomes ConvInteger, and its sums are scaled and shifted in float32. Sums are exact in both, so an image's
numbers do not depend on its batch. Weights are stored as uint8 around 128: without VNNI, MLAS adds two products
of uint8 and int8 in 16 bits, which saturates; products of uint8 and uint8 have room.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from pipeline.fuse.matching import add_weight

_MIDDLE = 128
_LARGEST_BIAS = 2**30
"""Of a bias in units of sums: what QLinearConv adds is int32, and so is the sum."""


class _Operand(NamedTuple):
    """Codes and how they are read; scale and zero point are constants."""

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value


class _Tail(NamedTuple):
    """What comes after a convolution up to the rounding of its result."""

    pools: tuple[ir.Node, ...]
    rounding: ir.Node


def lower_convolutions(model: ir.Model) -> None:
    """Rewrites the quantized convolutions of `model` in place; those of other codes than uint8 stay as they are."""
    for node in list(model.graph):
        if node.op_type != "Conv" or node.domain != "":
            continue
        activation, weight = _activation(node.inputs[0]), _weight(node.inputs[1])
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if activation is None or weight is None or (bias is not None and bias.const_value is None):
            continue
        lowering = _Lowering(model.graph, node, activation, weight, bias)
        tail = _tail(node)
        if tail is None or not lowering.to_codes(tail):
            lowering.to_floats()
    passes.RemoveUnusedNodesPass()(model)


class _Lowering:
    """One convolution."""

    def __init__(
        self, graph: ir.Graph, node: ir.Node, activation: _Operand, weight: ir.Node, bias: ir.Value | None
    ) -> None:
        self._graph = graph
        self._node = node
        self._activation = activation
        self._codes, self._scales = (_numbers(value) for value in weight.inputs[:2])
        self._origin = weight.inputs[0]
        self._bias = None if bias is None else _numbers(bias)
        self._name = node.outputs[0].name or ""
        self._step = self._scales * _numbers(activation.scale)  # of a sum, [out]

    def to_codes(self, tail: _Tail) -> bool:
        """QLinearConv, then the pools on its codes; False, and nothing is changed, where its bias does not fit."""
        inputs: list[ir.Value | None] = [*self._activation]
        shift = None
        if self._bias is not None:
            with np.errstate(over="ignore"):
                shift = np.rint(self._bias.astype(np.float64) / self._step)
            if not (np.abs(shift) < _LARGEST_BIAS).all():
                return False
        inputs += [
            self._weight(),
            self._constant("weight_scale", self._scales.astype(np.float32)),
            self._constant("weight_zero", np.full(len(self._scales), _MIDDLE, np.uint8)),
            *tail.rounding.inputs[1:3],
        ]
        if shift is not None:
            inputs.append(self._constant("bias", shift.astype(np.int32)))
        value = self._add(
            "QLinearConv", inputs, self._node.attributes, "codes", ir.DataType.UINT8, notes=True
        )
        for place, pool in enumerate(tail.pools):
            value = self._add("MaxPool", [value], pool.attributes, f"codes_{place}", ir.DataType.UINT8)
        value.shape = tail.rounding.outputs[0].shape
        tail.rounding.outputs[0].replace_all_uses_with(value)
        return True

    def to_floats(self) -> None:
        """ConvInteger, scaled and shifted as the convolution's own output."""
        zero = self._constant("weight_zero", np.array(_MIDDLE, np.uint8))
        inputs = [self._activation.codes, self._weight(), self._activation.zero, zero]
        sums = self._add("ConvInteger", inputs, self._node.attributes, "sums", ir.DataType.INT32, notes=True)
        value = self._add("Cast", [sums], {"to": int(ir.DataType.FLOAT)}, "float", ir.DataType.FLOAT)
        column = (-1, *[1] * (self._codes.ndim - 2))
        factor = self._constant("step", self._step.astype(np.float32).reshape(column))
        value = self._add("Mul", [value, factor], {}, "scaled", ir.DataType.FLOAT)
        if self._bias is not None:
            shift = self._constant("shift", self._bias.astype(np.float32).reshape(column))
            value = self._add("Add", [value, shift], {}, "shifted", ir.DataType.FLOAT)
        old = self._node.outputs[0]
        value.type, value.shape = old.type, old.shape
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        old.name, value.name = f"{self._name}.convolution", self._name

    def _weight(self) -> ir.Value:
        codes = (self._codes.astype(np.int16) + _MIDDLE).astype(np.uint8)
        return self._constant("weight", codes, self._origin)

    def _constant(self, what: str, array: npt.NDArray[Any], origin: ir.Value | None = None) -> ir.Value:
        name = f"{self._name}.{what}"
        return add_weight(self._graph, ir.tensor(np.asarray(array, order="C"), name=name), name, origin)

    def _add(
        self,
        op_type: str,
        inputs: Any,
        attributes: Any,
        what: str,
        kind: ir.DataType,
        notes: bool = False,
    ) -> ir.Value:
        """A node before the convolution; gives its output."""
        out = ir.Value(name=f"{self._name}.{what}", type=ir.TensorType(kind))
        made = ir.node(
            op_type,
            inputs,
            attributes if isinstance(attributes, dict) else None,
            outputs=[out],
            name=f"{self._node.name}.{what}",
            metadata_props=dict(self._node.metadata_props) if notes else None,
        )
        if not isinstance(attributes, dict):
            made.attributes.update(attributes)
        self._graph.insert_before(self._node, made)
        return out


def _activation(value: ir.Value | None) -> _Operand | None:
    """The uint8 codes behind what a convolution reads; None where there are none."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or len(node.inputs) < 3:
        return None
    codes, scale, zero = node.inputs[:3]
    if codes is None or scale is None or zero is None or codes.const_value is not None:
        return None
    if not _is_one(scale) or not _is_one(zero) or zero.dtype != ir.DataType.UINT8:
        return None
    return _Operand(codes, scale, zero)


def _weight(value: ir.Value | None) -> ir.Node | None:
    """What gives a weight of symmetric int8 codes with a scale an output channel; None for other weights."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or len(node.inputs) != 2:
        return None
    codes, scales = node.inputs
    if codes is None or scales is None or codes.const_value is None or scales.const_value is None:
        return None
    channels = node.attributes.get_int("axis", 1) == 0 and len(scales.const_value.shape) == 1
    return node if channels and codes.const_value.dtype == ir.DataType.INT8 else None


def _tail(node: ir.Node) -> _Tail | None:
    """What rounds the result of a convolution and nothing else reads; None where it is read in floating point."""
    pools: list[ir.Node] = []
    activated = False
    value = node.outputs[0]
    while True:
        readers = list(value.uses())
        if len(readers) != 1 or value.is_graph_output():
            return None
        reader = readers[0][0]
        if reader.domain != "":
            return None
        if reader.op_type == "Relu":
            activated = True
        elif reader.op_type == "MaxPool" and len(reader.outputs) == 1:
            pools.append(reader)
        else:
            break
        value = reader.outputs[0]
    if (
        reader.op_type != "QuantizeLinear"
        or len(reader.inputs) < 3
        or not all(map(_is_one, reader.inputs[1:3]))
    ):
        return None
    zero = reader.inputs[2]
    assert zero is not None
    if zero.dtype != ir.DataType.UINT8 or (activated and int(_numbers(zero)) != 0):
        return None
    return _Tail(tuple(pools), reader)


def _is_one(value: ir.Value | None) -> bool:
    """Whether a value is a constant number."""
    return value is not None and value.const_value is not None and value.const_value.size == 1


def _numbers(value: ir.Value | None) -> npt.NDArray[Any]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()
