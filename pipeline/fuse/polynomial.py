"""Arithmetic with scalars read as a polynomial: the many ways to write one formula become equal.

0.5 * x * (1 + g), x * (0.5 + 0.5 * g) and (x + x * g) / 2 all read {(1, 0): 0.5, (1, 1): 0.5} in x and g.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from .matching import scalar

Polynomial = dict[tuple[int, ...], float]
"""Coefficients by the powers of each variable; zero coefficients are left out."""

_DEGREE = 4
"""Higher powers are not followed: no activation has them."""
_DEPTH = 12
"""Nodes between a value and its variables, at most."""


def polynomial(
    value: ir.Value | None, variables: Sequence[ir.Value], inside: set[ir.Node] | None = None
) -> Polynomial | None:
    """`value` as a polynomial in `variables`; None when it is no polynomial in them.

    `inside` receives the nodes between. Only sums, differences, products, whole powers, and quotients by
    constants are followed, and only constants of one element.
    """
    return _read(value, variables, set() if inside is None else inside, _DEPTH)


def same(found: Polynomial | None, wanted: Mapping[tuple[int, ...], float], relative: float = 1e-5) -> bool:
    """Whether two polynomials have the same terms, with coefficients equal up to `relative`."""
    if found is None or set(found) != set(wanted):
        return False
    return all(math.isclose(found[powers], wanted[powers], rel_tol=relative) for powers in wanted)


def _read(
    value: ir.Value | None, variables: Sequence[ir.Value], inside: set[ir.Node], depth: int
) -> Polynomial | None:
    for index, variable in enumerate(variables):
        if value is variable:
            return {tuple(int(place == index) for place in range(len(variables))): 1.0}
    number = scalar(value)
    if number is not None:
        return _cleaned({(0,) * len(variables): number})
    node = None if value is None else value.producer()
    if node is None or node.domain != "" or depth == 0:
        return None
    operands = [_read(given, variables, inside, depth - 1) for given in node.inputs]
    result = _computed(node, operands)
    if result is not None:
        inside.add(node)
    return result


def _computed(node: ir.Node, operands: Sequence[Polynomial | None]) -> Polynomial | None:
    """What a node of arithmetic makes of its operands."""
    if any(operand is None for operand in operands):
        return None
    known = [operand for operand in operands if operand is not None]
    kind = node.op_type
    if kind == "Identity":
        return known[0]
    if kind == "Neg":
        return {powers: -factor for powers, factor in known[0].items()}
    if kind == "Sum" or (kind == "Add" and len(known) == 2):
        return _sum(known)
    if len(known) != 2:
        return None
    left, right = known
    if kind == "Sub":
        return _sum([left, {powers: -factor for powers, factor in right.items()}])
    if kind == "Mul":
        return _product(left, right)
    number = _number(right)
    if kind == "Div" and number:
        return {powers: factor / number for powers, factor in left.items()}
    if kind == "Pow" and number is not None and number == int(number) and 1 <= number <= _DEGREE:
        result: Polynomial | None = left
        for _ in range(int(number) - 1):
            result = None if result is None else _product(result, left)
        return result
    return None


def _number(found: Polynomial) -> float | None:
    """The value of a polynomial without variables."""
    if not found:
        return 0.0
    ((powers, factor), *rest) = found.items()
    return factor if not rest and not any(powers) else None


def _sum(parts: Sequence[Polynomial]) -> Polynomial:
    total: Polynomial = {}
    for part in parts:
        for powers, factor in part.items():
            total[powers] = total.get(powers, 0.0) + factor
    return _cleaned(total)


def _product(left: Polynomial, right: Polynomial) -> Polynomial | None:
    total: Polynomial = {}
    for first, a in left.items():
        for second, b in right.items():
            powers = tuple(p + q for p, q in zip(first, second, strict=True))
            if sum(powers) > _DEGREE:
                return None
            total[powers] = total.get(powers, 0.0) + a * b
    return _cleaned(total)


def _cleaned(found: Polynomial) -> Polynomial:
    return {powers: factor for powers, factor in found.items() if factor != 0.0}
