"""Small questions that rules ask of a graph: who made this value, who reads it, which constant is it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from pipeline.notes import SAME_AS

Dims = tuple[int | str, ...]
"""Fixed sizes, and names of sizes known only at run time."""

SMALL = 1024
"""Elements. Constants of up to so many are looked at (shapes, axes, scalars); larger ones are data."""


def made_by(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node | None:
    """The node that makes `value`, when it is of this operator."""
    if value is None:
        return None
    node = value.producer()
    if node is None or node.op_type != op_type or node.domain != domain:
        return None
    return node


def only_reader(value: ir.Value, op_type: str | None = None) -> ir.Node | None:
    """The node that reads `value`, when there is exactly one reader and the value is no output."""
    readers = set(value.consumers())
    if len(readers) != 1 or value.is_graph_output():
        return None
    (node,) = readers
    if op_type is not None and (node.op_type != op_type or node.domain != ""):
        return None
    return node


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The second operand of a node of two, when `value` is one of them."""
    if len(node.inputs) != 2:
        return None
    first, second = node.inputs
    if first is value:
        return second
    return first if second is value else None


def is_weight(value: ir.Value | None) -> bool:
    """Whether `value` is constant data of the model (an initializer that no caller can replace)."""
    return value is not None and value.is_initializer() and not value.is_graph_input()


def constant(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """A small constant as an array; None for anything else."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > SMALL:
        return None
    return tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """A constant of one element."""
    array = constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def integers(value: ir.Value | None) -> tuple[int, ...] | None:
    """A constant of whole numbers, flat."""
    array = constant(value)
    if array is None or not np.issubdtype(array.dtype, np.integer):
        return None
    return tuple(int(item) for item in array.reshape(-1))


def dims(value: ir.Value | None) -> Dims | None:
    """The shape of `value`; None when its rank or any name in it is unknown."""
    if value is None or value.shape is None:
        return None
    sizes: list[int | str] = []
    for size in value.shape:
        known = size if isinstance(size, int) else size.value
        if known is None:
            return None
        sizes.append(known)
    return tuple(sizes)


def rank(value: ir.Value | None) -> int | None:
    """Number of axes of `value`; None when unknown."""
    return None if value is None or value.shape is None else len(value.shape)


def integer_attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.as_int())


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """A float attribute, or its default."""
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.as_float())


def normalizes_last_axis(node: ir.Node, value: ir.Value) -> bool:
    """Whether the `axis` attribute of a normalization of `value` names its last axis."""
    axis = integer_attribute(node, "axis", -1)
    return axis == -1 or axis + 1 == rank(value)


def node_name(node: ir.Node) -> str:
    """A name for reports."""
    return node.name or node.outputs[0].name or node.op_type


def insert_before(place: ir.Node, node: ir.Node) -> ir.Value:
    """Puts a new node of one output before `place`; gives the output."""
    graph = place.graph
    assert isinstance(graph, ir.Graph)
    graph.insert_before(place, node)
    return node.outputs[0]


def output(name: str | None, dtype: ir.DataType | None, shape: Sequence[int | str] | None) -> ir.Value:
    """A value for a new node to make."""
    return ir.Value(
        name=name,
        type=None if dtype is None else ir.TensorType(dtype),
        shape=None if shape is None else ir.Shape(shape),
    )


def note_same(new: ir.Value, old: ir.Value) -> None:
    """Notes on `new` that it has the elements of `old`, in the same order, whatever the shape (`SAME_AS`)."""
    name = old.metadata_props.get(SAME_AS, old.name)
    if name:
        new.metadata_props.setdefault(SAME_AS, name)


def replace(old: ir.Value, new: ir.Value) -> None:
    """Everyone who read `old` reads `new`; as an output of the graph it keeps its name.

    Both have the same elements in the same order, and `new` says so (`note_same`).
    """
    note_same(new, old)
    if new.shape is None:
        new.shape = old.shape
    if new.type is None:
        new.type = old.type
    if old.is_graph_output():
        name, old.name = old.name, f"{old.name}_before_fusion"
        new.name = name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def integer_weight(graph: ir.Graph, numbers: Sequence[int], name: str) -> ir.Value:
    """A constant int64 vector of the graph; equal ones are shared."""
    array = np.asarray(numbers, dtype=np.int64)
    key = f"{name}_" + "_".join(str(number).replace("-", "m") for number in numbers)
    known = graph.initializers.get(key)
    if known is not None:
        return known
    return add_weight(graph, ir.tensor(array, name=key), key)


def add_weight(
    graph: ir.Graph, tensor: ir.TensorProtocol, name: str, origin: ir.Value | None = None
) -> ir.Value:
    """A new initializer called `name`, with the notes of `origin`, whose numbers it stands for.

    Raises ValueError when there is one of that name.
    """
    value = ir.Value(
        name=name,
        type=ir.TensorType(tensor.dtype),
        shape=ir.Shape(tensor.shape.numpy()),
        const_value=tensor,
        metadata_props={} if origin is None else dict(origin.metadata_props),
    )
    graph.register_initializer(value)
    return value
