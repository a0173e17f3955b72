"""Some nodes of a graph, run by ONNX Runtime on tensors at hand, one after the other as they stand.

A graph is taken apart without a file. Weights stay mapped where they lie and are fed as inputs: ONNX Runtime reads
inputs in place, and would make a copy of initializers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from model_repo.runtime.errors import BadInput
from model_repo.runtime.onnxruntime_executor import NUMBERED, pool_value
from plugins.cpu.build import registered
from plugins.schemas import DOMAIN

Array = npt.NDArray[Any]

INLINE_BYTES = 1 << 14
"""Weights above this are fed; smaller ones are part of the message, for operators that ask for constants."""

_LATEST_IR = 13
"""The newest IR version that the ONNX Runtime in use reads (1.31)."""
_CARRIED_AS_FLOAT32 = frozenset(
    (
        ir.DataType.BFLOAT16,
        ir.DataType.FLOAT8E4M3FN,
        ir.DataType.FLOAT8E4M3FNUZ,
        ir.DataType.FLOAT8E5M2,
        ir.DataType.FLOAT8E5M2FNUZ,
    )
)
"""Types that numpy does not have: between slices they are float32, which holds each of their values."""


class Slice:
    """`nodes` of `model` in their order. `wanted`: the values that they make which are needed afterwards."""

    def __init__(self, model: ir.Model, nodes: Sequence[ir.Node], wanted: Sequence[ir.Value]) -> None:
        """Raises BadInput when ONNX Runtime does not take the nodes."""
        made = {value for node in nodes for value in node.outputs}
        read = list(dict.fromkeys(value for node in nodes for value in used(node) if value not in made))
        self.inputs = tuple(value for value in read if not _is_weight(value))
        self.wanted = tuple(wanted)
        self._model = model
        self._nodes = tuple(nodes)
        weights = [value for value in read if _is_weight(value)]
        self._inline = [value for value in weights if _is_inline(value)]
        self._fed = [value for value in weights if not _is_inline(value)]
        self._session: ort.InferenceSession | None = None

    def run(self, given: Mapping[ir.Value, Array]) -> list[Array]:
        """The wanted values, from `inputs`. Raises BadInput when ONNX Runtime cannot compute them."""
        try:
            if self._session is None:
                self._session = self._open(given)
            # Without a copy, so that an operator can write to a pool in place.
            feeds = {_carried(value): _fed(_contiguous(given[value])) for value in self.inputs}
            feeds |= {value.name or "": _contiguous(_tensor(value).numpy()) for value in self._fed}
            results: list[Array] = self._session.run(None, feeds)
        except BadInput:
            raise
        except Exception as error:  # ONNX Runtime's errors share no base of their own
            names = ", ".join(node.name or node.op_type for node in self._nodes)
            raise BadInput(f"ONNX Runtime cannot run the nodes {names} by themselves: {error}") from error
        for value, result in zip(self.wanted, results, strict=True):
            if not isinstance(result, np.ndarray):
                raise BadInput(
                    f"{value.name} is no tensor but a {type(result).__name__}; only tensors go between slices"
                )
        return results

    def _open(self, given: Mapping[ir.Value, Array]) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
        if any(node.domain == DOMAIN for node in self._nodes):
            registered(options)
        message = self._message(given).SerializeToString()
        return ort.InferenceSession(message, options, providers=["CPUExecutionProvider"])

    def _message(self, given: Mapping[ir.Value, Array]) -> onnx.ModelProto:
        before, inputs, after, outputs = [], [], [], []
        for value in self.inputs:
            kind = onnx.helper.np_dtype_to_tensor_dtype(given[value].dtype)
            inputs.append(onnx.helper.make_tensor_value_info(_carried(value), kind, None))
            if _is_carried(value):
                before.append(_cast(_carried(value), value.name or "", value.dtype))
        for value in self._fed:
            inputs.append(
                onnx.helper.make_tensor_value_info(value.name or "", int(_tensor(value).dtype), None)
            )
        initializers = [_whole(_tensor(value), value.name or "") for value in self._inline]
        for value in self.wanted:
            outputs.append(onnx.helper.make_empty_tensor_value_info(_carried(value)))
            if _is_carried(value):
                after.append(_cast(value.name or "", _carried(value), ir.DataType.FLOAT))
        nodes = [*before, *(ir.serde.serialize_node(node) for node in self._nodes), *after]
        graph = onnx.helper.make_graph(nodes, "slice", inputs, outputs, initializers)
        versions = [
            onnx.helper.make_opsetid(name, version) for name, version in self._model.opset_imports.items()
        ]
        functions = [ir.serde.serialize_function(function) for function in self._model.functions.values()]
        return onnx.helper.make_model(
            graph,
            opset_imports=versions,
            functions=functions,
            ir_version=min(self._model.ir_version or 10, _LATEST_IR),
        )


def used(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads: its inputs, and what the graphs within it read from outside."""
    for value in node.inputs:
        if value is not None:
            yield value
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from _captured([attribute.as_graph()])
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from _captured(attribute.as_graphs())


def _captured(graphs: Sequence[ir.Graph]) -> Iterator[ir.Value]:
    """Values that graphs within a node read and do not make themselves."""
    for graph in graphs:
        own = {*graph.inputs, *graph.initializers.values()}
        own.update(value for node in graph for value in node.outputs)
        for node in graph:
            yield from (value for value in used(node) if value not in own)
        yield from (value for value in graph.outputs if value not in own)


def _is_weight(value: ir.Value) -> bool:
    return value.const_value is not None and value.is_initializer() and not value.is_graph_input()


def _is_inline(value: ir.Value) -> bool:
    """Whether a weight is part of the message."""
    tensor = _tensor(value)
    return tensor.nbytes <= INLINE_BYTES or not _known_to_numpy(tensor.dtype)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _is_carried(value: ir.Value) -> bool:
    return value.dtype in _CARRIED_AS_FLOAT32


def _carried(value: ir.Value) -> str:
    """The name under which a value goes in and out of a slice."""
    return f"{value.name}:float32" if _is_carried(value) else value.name or ""


def _cast(source: str, target: str, kind: ir.DataType | None) -> onnx.NodeProto:
    assert kind is not None
    return onnx.helper.make_node("Cast", [source], [target], to=int(kind), name=f"{target}:cast")


def _known_to_numpy(kind: ir.DataType) -> bool:
    return kind.bitwidth >= 8 and np.dtype(kind.numpy()).kind in "fiub"


def _whole(tensor: ir.TensorProtocol, name: str) -> onnx.TensorProto:
    """The tensor with its data in the message, whereever its data lies."""
    data = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)
    return ir.serde.serialize_tensor(data)


def _fed(array: Array) -> Any:
    """The array itself, or an OrtValue on its memory where ONNX Runtime knows the type by number only."""
    name = array.dtype.name
    return pool_value(array, name) if name in NUMBERED else array


def _contiguous(array: Array) -> Array:
    """The array itself where it lies in C order: numpy's own function would give a scalar an axis."""
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)
