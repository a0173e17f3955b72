"""GELU, however it is written, becomes one Gelu; x * sigmoid(a * x) becomes one Swish.

GELU: Hendrycks and Gimpel 2016, https://arxiv.org/abs/1606.08415. By erf: x / 2 * (1 + erf(x / sqrt(2))); by
tanh: x / 2 * (1 + tanh(u)) = x * sigmoid(2 u), where u = sqrt(2 / pi) * (x + 0.044715 * x ** 3).
Swish: Ramachandran et al. 2017, https://arxiv.org/abs/1710.05941; x * sigmoid(1.702 * x) is "quick GELU".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import onnx_ir as ir

from .matching import dims, insert_before, node_name, output, replace
from .polynomial import Polynomial, polynomial, same
from .rule import Matches, NearMiss, Rule

FIRST_OPSET = {"Gelu": 20, "Swish": 24}
"""The opsets that brought the operators."""

_U: Mapping[tuple[int, ...], float] = {(1,): math.sqrt(2 / math.pi), (3,): math.sqrt(2 / math.pi) * 0.044715}
_HALF: Mapping[tuple[int, ...], float] = {(1, 0): 0.5, (1, 1): 0.5}
_WHOLE: Mapping[tuple[int, ...], float] = {(1, 1): 1.0}
_STEPS = 6
"""Nodes between the anchor and the last node of the formula, at most."""


class _Found(NamedTuple):
    """The operator that a formula is, what it reads, and the last node of it."""

    operator: str
    attributes: dict[str, Any]
    x: ir.Value
    last: ir.Node


class Activation(Rule):
    """Anchored at Erf, Tanh or Sigmoid; the arithmetic around it is read as polynomials in x."""

    name: ClassVar[str] = "activation"

    def rewrite(self, model: ir.Model) -> Matches:
        """Fuses where nothing else reads a value inside the formula."""
        opset = model.opset_imports.get("", 0)
        count, missed = 0, []
        for node in list(model.graph):
            if node.op_type not in ("Erf", "Tanh", "Sigmoid") or node.domain != "":
                continue
            found = _match(node)
            if isinstance(found, _Found) and opset < FIRST_OPSET[found.operator]:
                found = f"opset {opset} has no {found.operator}"
            if isinstance(found, str):
                missed.append(NearMiss(node_name(node), found))
            if not isinstance(found, _Found):
                continue
            old = found.last.outputs[0]
            fused = ir.node(
                found.operator,
                [found.x],
                found.attributes,
                outputs=[output(f"{old.name}_{found.operator.lower()}", old.dtype, dims(old))],
                name=f"{node_name(node)}_{found.operator.lower()}",
                metadata_props=dict(node.metadata_props),
            )
            replace(old, insert_before(found.last, fused))
            count += 1
        return Matches(count, tuple(missed))


def _match(anchor: ir.Node) -> _Found | str | None:
    """The formula around an anchor; a reason when it only looks like one; None when it is another."""
    argument = anchor.inputs[0]
    assert argument is not None
    nearly = None
    for x in _candidates(argument):
        inner: set[ir.Node] = {anchor}
        meaning = _meaning(anchor.op_type, polynomial(argument, [x], inner))
        if meaning is None:
            continue
        operator, attributes, wanted = meaning
        if isinstance(wanted, str):
            nearly = wanted
            continue
        for last in _onwards(anchor):
            inside = set(inner)
            if not same(polynomial(last.outputs[0], [x, anchor.outputs[0]], inside), wanted):
                continue
            read = _read_elsewhere(inside, last)
            if read is not None:
                return f"something else reads {read}"
            if dims(x) is None or dims(x) != dims(last.outputs[0]):
                return f"the result has shape {dims(last.outputs[0])}, its operand {dims(x)}"
            return _Found(operator, attributes, x, last)
        if anchor.op_type != "Sigmoid":
            nearly = f"the {anchor.op_type.lower()} of the operand is not used as {operator} uses it"
    return nearly


def _meaning(
    kind: str, argument: Polynomial | None
) -> tuple[str, dict[str, Any], Mapping[tuple[int, ...], float] | str] | None:
    """Operator, attributes and the polynomial in x and the anchor's result that an argument belongs to."""
    if argument is None:
        return None
    if kind == "Erf" and same(argument, {(1,): math.sqrt(0.5)}):
        return "Gelu", {"approximate": "none"}, _HALF
    if kind == "Tanh" and same(argument, _U):
        return "Gelu", {"approximate": "tanh"}, _HALF
    if kind == "Sigmoid" and same(argument, {powers: 2 * factor for powers, factor in _U.items()}):
        return "Gelu", {"approximate": "tanh"}, _WHOLE
    if kind == "Sigmoid" and set(argument) == {(1,)}:
        return "Swish", {"alpha": argument[1,]}, _WHOLE
    if kind == "Tanh" and set(argument) == set(_U):
        terms = ", ".join(f"{factor:.6g} x^{powers[0]}" for powers, factor in sorted(argument.items()))
        return "Gelu", {}, f"the tanh is of {terms}, not of GELU's 0.797885 x^1, 0.0356774 x^3"
    return None


def _candidates(argument: ir.Value) -> Iterator[ir.Value]:
    """Values that the argument is computed from, the nearest first: any of them may be x."""
    seen: dict[ir.Value, None] = {argument: None}
    layer = [argument]
    for _ in range(_STEPS):
        below: list[ir.Value] = []
        for value in layer:
            node = value.producer()
            if node is not None and node.domain == "" and node.op_type in ("Add", "Mul", "Div", "Pow", "Sub"):
                below += [given for given in node.inputs if given is not None and given not in seen]
                seen.update(dict.fromkeys(below))
        layer = below
    yield from seen


def _onwards(anchor: ir.Node) -> Iterator[ir.Node]:
    """The nodes that the anchor's result runs into, the nearest first."""
    layer, seen = [anchor], {anchor}
    for _ in range(_STEPS):
        above = []
        for node in layer:
            for reader in node.outputs[0].consumers():
                if reader not in seen and reader.domain == "" and len(reader.outputs) == 1:
                    seen.add(reader)
                    above.append(reader)
                    yield reader
        layer = above


def _read_elsewhere(inside: set[ir.Node], last: ir.Node) -> str | None:
    """The name of a value that something outside the formula reads, the result apart."""
    for node in inside:
        value = node.outputs[0]
        if node is not last and (value.is_graph_output() or not inside.issuperset(value.consumers())):
            return value.name or node_name(node)
    return None
