"""A graph against ONNX Runtime's own schemas, which its CPU package has for operators of other machines too."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from model_repo.runtime.errors import BadInput
from pipeline.graph import load_graph


def without_weights(path: Path) -> ir.Model:
    """The graph at `path` with its large weights as inputs, so that loading it takes no memory."""
    model = load_graph(path)
    for name, value in list(model.graph.initializers.items()):
        if isinstance(value.const_value, ir.ExternalTensor):
            del model.graph.initializers[name]
            value.const_value = None
            model.graph.inputs.append(value)
    return model


@functools.cache
def contrib_schemas() -> Mapping[str, Any]:
    """The schemas of domain com.microsoft by operator, as ONNX Runtime describes them."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    return {schema.name: schema for schema in get_all_operator_schema() if schema.domain == "com.microsoft"}


def check_schemas(model: ir.Model) -> None:
    """Raises BadInput for the first node of com.microsoft that is not as its schema says: number and types of inputs
    and outputs, names and types of attributes."""
    for node in model.graph.all_nodes():
        if node.domain != "com.microsoft":
            continue
        problem = next(_problems(node), None)
        if problem is not None:
            raise BadInput(
                f"com.microsoft.{node.op_type} {node.name!r}: {problem}; build for target 'onnxruntime'"
            )


def _problems(node: ir.Node) -> Iterator[str]:
    schema = contrib_schemas().get(node.op_type)
    if schema is None:
        yield "ONNX Runtime has no such operator"
        return
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    bound: dict[str, str] = {}
    for values, formal in ((node.inputs, schema.inputs), (node.outputs, schema.outputs)):
        if len(values) > len(formal):
            yield f"it has {len(values)} inputs or outputs and may have {len(formal)}"
        for place, parameter in enumerate(formal):
            value = values[place] if place < len(values) else None
            if value is None:
                if parameter.option.name == "Single":
                    yield f"{parameter.name!r} is needed"
                continue
            if value.dtype is None:
                continue
            given, kind = f"tensor({value.dtype.name.lower()})", parameter.typeStr
            if given not in allowed.get(kind, {kind}):
                yield f"{parameter.name!r} is {given}; it may be {', '.join(sorted(allowed.get(kind, {kind})))}"
            if bound.setdefault(kind, given) != given:
                yield f"{parameter.name!r} is {given}, and another of its type is {bound[kind]}"
    yield from _attribute_problems(node, schema)


def _attribute_problems(node: ir.Node, schema: Any) -> Iterator[str]:
    for name, attribute in node.attributes.items():
        if name not in schema.attributes:
            yield f"it has no attribute {name!r}; it has {', '.join(sorted(schema.attributes))}"
        elif schema.attributes[name].type.name != attribute.type.name:
            yield f"attribute {name!r} is {attribute.type.name} and has to be {schema.attributes[name].type.name}"
    for name, described in schema.attributes.items():
        if described.required and name not in node.attributes:
            yield f"attribute {name!r} is needed"
