"""Programs translated as torch.export gave them, where torch's decompositions would change nothing.

Before torch's ONNX exporter translates a program it traces the whole of it again, to decompose operators that have
no ONNX function: most of the time of an export. In nearly all programs only a few such operators occur, and what
they decompose to is known; these are replaced here, and the tracing is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.onnx._internal.exporter._decomp import create_onnx_friendly_decomposition_table
from torch.onnx._internal.exporter._registration import ONNXRegistry

_ATEN = torch.ops.aten


def replace_decomposed(program: ExportedProgram) -> None:
    """Puts in, in place, what the operators of `program` decompose to where that is known."""
    for node in list(program.graph.nodes):
        replace = _REPLACED.get(node.target) if node.op == "call_function" else None
        if replace is not None:
            replace(program, node)


def is_decomposed(program: ExportedProgram, registry: ONNXRegistry) -> bool:
    """Whether decomposing what has no function in `registry` would leave the program as it is.

    False for a program with an operator to decompose, one that writes to its inputs and one that holds programs of
    its own (branches, loops).
    """
    rest = set()
    for node in program.graph.nodes:
        if node.op == "get_attr":
            return False
        if node.op != "call_function":
            continue
        schema = getattr(node.target, "_schema", None)
        if node.target in _REPLACED or (schema is not None and schema.is_mutable):
            return False
        if schema is not None and not registry.is_registered(node.target):
            if _is_composed(schema):
                return False
            rest.add(node.target)
    # The table leaves out what is registered. It takes a third of a second, and most programs do without.
    return not rest or rest.isdisjoint(create_onnx_friendly_decomposition_table(set()))


def _is_composed(schema: Any) -> bool:
    """Whether an operator of torch is made of others, which tracing writes (batch_norm)."""
    name = f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name
    return name.startswith("aten::") and torch._C._dispatch_has_kernel_for_dispatch_key(
        name, "CompositeImplicitAutograd"
    )


def _drop(program: ExportedProgram, node: Node) -> None:
    """Whoever read the result reads the first argument. An output keeps its node: the program's signature names it."""
    if any(user.op == "output" for user in node.users):
        node.target, node.args, node.kwargs = _ATEN._to_copy.default, node.args[:1], {}
        return
    node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    program.graph.erase_node(node)


def _cast(program: ExportedProgram, node: Node) -> None:
    """A change of type is a copy; a change of device or layout, and one to the type that is there, is nothing."""
    before, after = node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    if before.dtype == after.dtype:
        _drop(program, node)
        return
    node.target, node.args, node.kwargs = _ATEN._to_copy.default, node.args[:1], {"dtype": after.dtype}


def _drop_in_evaluation(program: ExportedProgram, node: Node) -> None:
    """Dropout that is switched off."""
    if node.args[2:3] == (False,):
        _drop(program, node)


def _subtract(program: ExportedProgram, node: Node) -> None:
    """rsub(x, number) is number - x."""
    if len(node.args) == 2 and not node.kwargs:
        node.target, node.args = _ATEN.sub.Tensor, (node.args[1], node.args[0])


_REPLACED: Mapping[Any, Callable[[ExportedProgram, Node], None]] = {
    _ATEN.to.dtype: _cast,
    _ATEN.to.dtype_layout: _cast,
    _ATEN.to.device: _cast,
    _ATEN.to.other: _cast,
    _ATEN.detach.default: _drop,
    _ATEN.detach_.default: _drop,
    _ATEN.dropout.default: _drop_in_evaluation,
    _ATEN.rsub.Scalar: _subtract,
}
"""What each becomes. Written to a program that is traced without gradients, where nothing is written in place."""
