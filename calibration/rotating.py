"""A decoder's residual stream turned by an orthogonal matrix, folded into the weights around it: the same model.

QuaRot (arXiv:2404.00456, section 4, stage 1a) and SpinQuant's R1 (arXiv:2405.16406). RMS normalization does not
change under a rotation of its input once its gain is part of the weights that read it. Then with x' = x R

    tables of embeddings   E' = E R
    layers that read x     W' = W R
    layers that write x    W' = R^T W,  b' = b R

Outliers of the stream's channels are spread over all of them (`algorithms/hadamard.py`), in the weights and in what
they multiply. A head that shares its table with the embedding gets a table of its own, as the gain before it differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from model_repo.runtime.errors import BadInput
from plugins.schemas import DOMAIN

from .algorithms.hadamard import rotation
from .linear_layers import LinearLayer, is_weight, linear_layer, replace_weight

Matrix = npt.NDArray[Any]

_GAIN = {"RMSNormalization": 1, "SkipRMSNormalization": 2}
"""Norms that a rotation goes through -> place of the gain."""


def rotate(model: ir.Model, seed: int = 0) -> list[str]:
    """Turns the residual stream of `model`, in place; gives the names of the weights that changed.

    Turned weights are computed when they are asked for, so that no more than one is held while a graph is saved.
    Raises BadInput, and changes nothing, where the stream reaches an operator that no rotation goes through (layer
    normalization subtracts a mean; a product that is no linear layer), or a norm's gain has other readers.
    """
    stream = _Stream(model)
    matrix = rotation(stream.width, seed)
    for norm in stream.norms:
        stream.fold_gain(norm)
    for table in stream.tables:
        _compute(table, lambda numbers: numbers @ matrix)
    for layer in stream.readers:
        _compute_layer(layer, lambda weight: weight @ matrix)
    for layer in stream.writers:
        _compute_layer(layer, lambda weight: matrix.T @ weight)
        if layer.bias is not None:
            _compute(layer.bias, lambda numbers: numbers @ matrix)
    return stream.names()


class _Stream:
    """What the residual stream goes through, found from the table that it begins with."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._turned: set[ir.Value] = set()
        self._wanted: list[ir.Value] = []
        self.norms: list[ir.Node] = []
        self.readers: list[LinearLayer] = []
        self.writers: list[LinearLayer] = []
        self.tables: list[ir.Value] = []
        begin = next((node for node in model.graph if _is_embedding(node)), None)
        if begin is None:
            raise BadInput("no table of embeddings begins the graph; rotations are for language models")
        self._begin(begin)
        table = self.tables[0]
        assert table.const_value is not None
        self.width = int(table.const_value.shape.numpy()[1])
        self._untie = [layer for layer in self.readers if layer.weight in self.tables]
        self._check_shared()
        self.readers = [self._own(layer) if layer in self._untie else layer for layer in self.readers]

    def names(self) -> list[str]:
        """Weights that have changed."""
        layers = [*self.readers, *self.writers]
        values = [*self.tables, *(layer.weight for layer in layers), *(layer.bias for layer in self.writers)]
        values += [norm.inputs[_GAIN[norm.op_type]] for norm in self.norms]
        return list(dict.fromkeys(value.name or "" for value in values if value is not None))

    def fold_gain(self, norm: ir.Node) -> None:
        """Multiplies the layers behind a norm by its gain, which becomes one."""
        gain = norm.inputs[_GAIN[norm.op_type]]
        assert gain is not None
        behind = set(_behind(norm.outputs[0]))
        factors = _numbers(gain)
        for layer in self.readers:
            if layer.inputs in behind:
                _compute_layer(layer, lambda weight: weight * factors)
        replace_weight(gain, np.ones_like(factors))

    def _begin(self, node: ir.Node) -> None:
        table = node.inputs[0]
        assert table is not None
        if table not in self.tables:
            self.tables.append(table)
        self._turn(node.outputs[0])

    def _turn(self, value: ir.Value) -> None:
        """`value` is turned; so must be what is added to it, and what reads it must cope."""
        waiting = [value]
        while waiting:
            current = waiting.pop()
            if current in self._turned:
                continue
            self._turned.add(current)
            if current in self._model.graph.outputs:
                raise self._refused(f"the output {current.name!r}")
            for node, place in current.uses():
                waiting += self._through(node, place)

    def _through(self, node: ir.Node, place: int) -> Iterator[ir.Value]:
        """Values that are turned because `node` reads a turned one; checks that it may."""
        layer = linear_layer(node)
        if layer is not None and place == 0:
            self.readers.append(layer)
        elif node.op_type in _GAIN and node.domain in ("", "ai.onnx", DOMAIN) and place < _GAIN[node.op_type]:
            if node not in self.norms:
                self._check_norm(node)
                self.norms.append(node)
            yield from self._summand(node, place) if node.op_type == "SkipRMSNormalization" else ()
            yield from (output for output in node.outputs if output.name)
        elif node.op_type == "Add" and node.domain in ("", "ai.onnx"):
            yield from self._summand(node, place)
            yield node.outputs[0]
        elif node.op_type == "Gather" and place == 0 and node.attributes.get_int("axis", 0) in (0, -2):
            yield node.outputs[0]
        else:
            raise self._refused(f"{node.op_type} (node {node.name!r})")

    def _summand(self, node: ir.Node, place: int) -> Iterator[ir.Value]:
        """The other summand must be turned too: it is the stream itself, or a layer writes it."""
        other = node.inputs[1 - place]
        if other is None or other in self._turned:
            return
        producer = other.producer()
        layer = None if producer is None else linear_layer(producer)
        if layer is not None:
            if layer not in self.writers:
                self.writers.append(layer)
            yield other
        elif producer is not None and _is_embedding(producer):
            self._begin(producer)
        elif producer is not None and producer.op_type in ("Add", "SkipRMSNormalization"):
            return  # it is turned once its own summands have been seen
        else:
            raise self._refused(f"a summand that no layer writes, {other.name!r}")

    def _check_norm(self, node: ir.Node) -> None:
        gain = node.inputs[_GAIN[node.op_type]]
        if not is_weight(gain) or gain is None or len(gain.uses()) != 1:
            raise self._refused(f"the gain of {node.op_type} (node {node.name!r}), which others read")

    def _check_shared(self) -> None:
        """A weight that others read cannot be changed for one reader."""
        mine = {layer.node for layer in (*self.readers, *self.writers)}
        for layer in (*self.readers, *self.writers):
            users = {node for node, _ in layer.weight.uses()}
            if layer.weight not in self.tables and (len(users) > 1 or not users <= mine):
                raise self._refused(f"the weight {layer.name!r}, which several nodes share")

    def _own(self, layer: LinearLayer) -> LinearLayer:
        """The layer with a copy of its weight to itself; notes of its origin come along."""
        value = ir.Value(
            name=f"{layer.name}.head",
            type=layer.weight.type,
            shape=layer.weight.shape,
            const_value=layer.weight.const_value,
            metadata_props=dict(layer.weight.metadata_props),
        )
        self._model.graph.register_initializer(value)
        layer.node.replace_input_with(1, value)
        return LinearLayer(layer.node, value, layer.inputs, layer.transposed)

    def _refused(self, what: str) -> BadInput:
        return BadInput(
            f"the residual stream reaches {what}, through which no rotation goes; quantize without rotation"
        )


def _behind(value: ir.Value) -> Iterator[ir.Value]:
    """The value, and its rows where they are chosen."""
    yield value
    for node, place in value.uses():
        if node.op_type == "Gather" and place == 0:
            yield from _behind(node.outputs[0])


def _is_embedding(node: ir.Node) -> bool:
    table = node.inputs[0] if node.op_type == "Gather" and node.domain in ("", "ai.onnx") else None
    if table is None or not is_weight(table) or node.attributes.get_int("axis", 0) != 0:
        return False
    assert table.const_value is not None
    return len(table.const_value.shape) == 2 and table.const_value.dtype in _FLOATS


def _compute(value: ir.Value, change: Callable[[Matrix], Matrix]) -> None:
    """Other numbers for a weight, made of those that it has now, when they are asked for."""
    before = value.const_value
    assert before is not None
    kind = before.dtype.numpy()

    def changed() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(change(before.numpy().astype(np.float32)).astype(kind)))

    value.const_value = ir.LazyTensor(
        changed, before.dtype, ir.Shape(before.shape.numpy()), name=value.name or ""
    )


def _compute_layer(layer: LinearLayer, change: Callable[[Matrix], Matrix]) -> None:
    """As `_compute`, of the weight as [out, in]."""
    _compute(layer.weight, (lambda weight: change(weight.T).T) if layer.transposed else change)


def _numbers(value: ir.Value) -> npt.NDArray[np.float32]:
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float32)


_FLOATS = frozenset((ir.DataType.FLOAT, ir.DataType.FLOAT16))
