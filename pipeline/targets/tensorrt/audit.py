"""The dtype audit: TensorRT's networks are strongly typed, so a node whose inputs are of mixed types is refused.

The builder would say so too, in its own words and one node at a time; here all are found before it is called.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import NamedTuple

import onnx
import onnx_ir as ir

from model_repo.runtime.errors import BadInput

_SHOWN = 5


class MixedTypes(NamedTuple):
    """A node that reads several types where its operator takes one."""

    node: str
    operator: str
    types: Mapping[str, str]  # input -> type

    def __str__(self) -> str:
        read = ", ".join(f"{name} is {dtype}" for name, dtype in self.types.items())
        return f"{self.operator} {self.node!r}: {read}"


def mixed_types(model: ir.Model) -> list[MixedTypes]:
    """All nodes whose inputs share a type variable in the standard and differ in type, in graph order.

    Inputs of unknown type are left to the builder.
    """
    found = []
    for node in model.graph.all_nodes():
        try:
            schema = onnx.defs.get_schema(node.op_type, model.opset_imports.get(node.domain, 1), node.domain)
        except onnx.defs.SchemaError:
            continue
        groups: dict[str, dict[str, ir.DataType]] = {}
        formal = list(schema.inputs)
        for place, value in enumerate(node.inputs):
            if value is None or value.dtype is None or not formal:
                continue
            parameter = formal[min(place, len(formal) - 1)]
            if place >= len(formal) - 1 and not parameter.is_homogeneous:
                continue
            groups.setdefault(parameter.type_str, {})[value.name or str(place)] = value.dtype
        for group in groups.values():
            if len(set(group.values())) > 1:
                types = {name: dtype.name.lower() for name, dtype in group.items()}
                found.append(MixedTypes(node.name or "", node.op_type, types))
    return found


def check_kept(model: ir.Model, names: Collection[str]) -> None:
    """Raises BadInput for names that no node of the lowered graph has, with those that are like it."""
    known = [node.name or "" for node in model.graph]
    unknown = [name for name in names if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=_SHOWN)
        raise BadInput(
            f"quantize.keep_float32 names {unknown[0]!r}, and the lowered graph has no node of that name"
            f"{'; it has ' + ', '.join(near) if near else ''}; `slipway parity` names the nodes that depart"
        )


def check_types(model: ir.Model) -> None:
    """Raises BadInput that names the nodes `mixed_types` finds."""
    found = mixed_types(model)
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise BadInput(
            f"{len(found)} nodes read mixed types, which a strongly typed network does not take: "
            f"{'; '.join(map(str, found[:_SHOWN]))}{more}. Put casts there, or convert the whole graph"
        )
