"""What a walk found, in words and as plain values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from .walk import NodeNote, Step, Walk

MOST_OTHERS = 5
"""Further tensors that are named in words; all of them are in the plain values."""


def explain(walk: Walk, stage: str, against: str) -> list[str]:
    """Lines for a person. `stage`: whose result was walked through; `against`: what it was compared with."""
    lines = _first(walk, stage, against)
    lines += _not_finite(walk)
    return lines


def to_dict(walk: Walk) -> dict[str, Any]:
    """Plain JSON values; a distance that is not finite is the words 'not finite'."""
    return {
        "nodes": walk.nodes,
        "tensors": [
            {
                **step._asdict(),
                "node": step.node._asdict(),
                "error": _json(step.error),
                "own_error": _json(step.own_error),
            }
            for step in walk.steps
        ],
        "departures": [
            {
                "tensor": departure.step.tensor,
                "partner": departure.step.partner,
                "own_error": _json(departure.step.own_error),
                "nodes": [node._asdict() for node in departure.nodes],
                "partner_nodes": [node._asdict() for node in departure.partners],
                "inputs": [found._asdict() for found in departure.inputs],
            }
            for departure in walk.departures
        ],
    }


def _first(walk: Walk, stage: str, against: str) -> list[str]:
    if not walk.departures:
        return [_nothing(walk, stage, against)]
    first = walk.departures[0]
    step = first.step
    wrong = (
        "the first node that departs" if len(first.nodes) == 1 else f"one of {len(first.nodes)} nodes departs"
    )
    lines = [
        f"{stage} brought it in: {wrong} from {against}; the result {step.tensor} is {_words(step.own_error)} off "
        "although what is read agrees",
        *_nodes(first.nodes),
        *(f"  reads {found}" for found in first.inputs),
    ]
    if first.partners and first.partners != first.nodes:
        lines += [f"in {against} it is {step.partner}, made by", *_nodes(first.partners)]
    elif step.partner != step.tensor:
        lines.append(f"in {against} it is the {step.partner}")
    same = [entry.step for entry in walk.departures[1:] if set(entry.nodes) & set(first.nodes)]
    others = [entry.step for entry in walk.departures[1:] if not set(entry.nodes) & set(first.nodes)]
    lines += _further("through the same nodes", same)
    lines += _further("departing by themselves too", others)
    return lines


def _nothing(walk: Walk, stage: str, against: str) -> str:
    own = max(walk.steps, key=lambda step: step.own_error)
    total = max(walk.steps, key=lambda step: step.error)
    return (
        f"no node of {stage} departs from {against} by itself: of {len(walk.steps)} tensors compared, the "
        f"largest error of one node on right inputs is {_words(own.own_error)} ({own.tensor}), and with all "
        f"that comes before it {_words(total.error)} ({total.tensor}); the difference is a sum of roundings, "
        "or made where no tensor is compared"
    )


def _further(what: str, steps: Sequence[Step]) -> list[str]:
    """A line that names tensors which depart besides the first; none when there are none."""
    if not steps:
        return []
    named = ", ".join(f"{step.tensor} ({_words(step.own_error)})" for step in steps[:MOST_OTHERS])
    more = f" and {len(steps) - MOST_OTHERS} more" if len(steps) > MOST_OTHERS else ""
    return [f"{what}: {named}{more}"]


def _nodes(nodes: Sequence[NodeNote]) -> list[str]:
    """Nodes in order, those of one line of the model's source together."""
    lines = []
    for (module, source), group in itertools.groupby(nodes, key=lambda node: (node.module, node.source)):
        named = ", ".join(f"{node.operator} {node.name!r}" for node in group)
        place = ", ".join(part for part in (f"module {module}" if module else "", source) if part)
        lines.append(f"  {named}" + (f" ({place})" if place else ""))
    return lines


def _not_finite(walk: Walk) -> list[str]:
    """Tensors that hold NaN or infinity where their partners do not."""
    steps = [step for step in walk.steps if step.not_finite > step.not_finite_before]
    if not steps:
        return []
    named = ", ".join(f"{step.tensor} ({step.not_finite} elements)" for step in steps[:MOST_OTHERS])
    more = f" and {len(steps) - MOST_OTHERS} more" if len(steps) > MOST_OTHERS else ""
    return [f"not finite: {named}{more}"]


def _words(error: float) -> str:
    return f"{error:.2g}" if math.isfinite(error) else "not finite and so infinitely far"


def _json(error: float) -> float | str:
    return error if math.isfinite(error) else "not finite"
