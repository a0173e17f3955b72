"""A graph walked through beside a reference: how far each tensor is from its partner, and which ones depart.

The graph is computed in two worlds at once. In the first it runs as it is, and differences add up. In the
second each tensor that has a partner is replaced by it as soon as it is compared, so that the nodes between
two partners are judged by themselves, on inputs that are right: every node that is wrong shows, and no node
behind it does. Only tensors that are still to be read are in memory (`stepwise.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import onnx_ir as ir

from calibration.slices import used
from model_repo.runtime.errors import BadInput
from pipeline.notes import MODULE, PACKED, SOURCE

from .distance import Range, distance, filled, not_finite, range_of
from .padding import packed
from .pairs import paired_values
from .stepwise import Feeds, Stepwise, Tensor

OWN, CORRECTED = 0, 1
"""The two worlds."""

LIMITS: Mapping[ir.DataType | None, float] = {
    ir.DataType.FLOAT16: 4e-3,
    ir.DataType.BFLOAT16: 3e-2,
}
"""How far a tensor of a type may be from its partner when its inputs are right: four times the type's rounding."""

LIMIT = 1e-4
"""The same for any other type: float32 rounds to 1e-7, and reorderings of long sums stay below 1e-5."""


class NodeNote(NamedTuple):
    """A node, and where it comes from ('' when nobody noted that)."""

    name: str
    operator: str
    module: str  # of the torch model
    source: str  # line of the torch model


class Step(NamedTuple):
    """A tensor beside its partner."""

    tensor: str
    partner: str
    node: NodeNote
    error: float  # distance with all that differs before it; inf: not finite on one side
    own_error: float  # distance when what its nodes read is right
    not_finite: int  # elements that are not finite here
    not_finite_before: int  # and in the partner


@dataclass(frozen=True)
class Departure:
    """Nodes whose result is wrong although what they read is right.

    `nodes` lie between tensors that agree (`inputs`: their ranges, and those of constants) and the first one
    that does not; `partners`: what computes that tensor in the reference, if it is a graph.
    """

    step: Step
    nodes: tuple[NodeNote, ...]
    partners: tuple[NodeNote, ...]
    inputs: tuple[Range, ...]


@dataclass(frozen=True)
class Walk:
    """All tensors with a partner in the order of computation, and those that depart by themselves."""

    steps: tuple[Step, ...]
    departures: tuple[Departure, ...]
    nodes: int


class Reference(Protocol):
    """Where the numbers come from that a graph should give."""

    def partners(self, candidate: ir.Model) -> Mapping[ir.Value, str]:
        """Values of the graph whose numbers are known, by the name that reports call them by."""

    def take(self, value: ir.Value) -> Tensor | None:
        """The numbers of one of them; None when there are none after all. Asked for once, in order.

        Where an array is masked (`numpy.ma`), nobody knows what the graph should give: at padding, for one.
        """

    def nodes(self, value: ir.Value) -> tuple[NodeNote, ...]:
        """What computes it there, between the partners before it and itself."""


class GraphReference:
    """Another graph of the same model, run on the same inputs."""

    def __init__(self, model: ir.Model, feeds: Sequence[Feeds]) -> None:
        """`feeds`: the inputs of each run; pools in them are written to."""
        self._model = model
        self._feeds = feeds
        self._pairs: dict[ir.Value, ir.Value] = {}
        self._stepwise: Stepwise | None = None

    def partners(self, candidate: ir.Model) -> Mapping[ir.Value, str]:
        """Raises BadInput when an input of the graph is not fed."""
        self._pairs = paired_values(self._model, candidate)
        self._stepwise = Stepwise(self._model, [self._feeds], list(self._pairs.values()))
        return {value: partner.name or "" for value, partner in self._pairs.items()}

    def take(self, value: ir.Value) -> Tensor | None:
        """Computes it."""
        assert self._stepwise is not None, "partners is asked first"
        partner = self._pairs[value]
        self._stepwise.reach(partner)
        result = self._stepwise.get(partner)
        self._stepwise.release(partner)
        self._stepwise.sweep()
        packing = value.metadata_props.get(PACKED)
        if packing is None or partner.metadata_props.get(PACKED) == packing:
            return result
        return (
            None
            if result is None
            else packed(result, [feeds["attention_mask"] for feeds in self._feeds], packing)
        )

    def nodes(self, value: ir.Value) -> tuple[NodeNote, ...]:
        """The nodes between other partners and this one."""
        partner = self._pairs[value]
        return tuple(note(node) for node in between(self._model, partner, set(self._pairs.values())))


def walk(
    reference: Reference,
    candidate: ir.Model,
    feeds: Callable[[], Sequence[Feeds]],
    limit: float | None = None,
) -> Walk:
    """Walks through `candidate`, on the inputs of `feeds()`, which is asked once a world.

    `limit`: the distance from which a tensor departs (None: that of the coarsest type on the way to it). Raises
    BadInput when no tensor of the graph has a partner, an input is not fed, or ONNX Runtime cannot run a node by
    itself.
    """
    partners = dict(reference.partners(candidate))
    if not partners:
        raise BadInput("no tensor of the two has the same name; compare artifacts of one model")
    graph = Stepwise(candidate, [feeds(), feeds()], list(partners))
    steps: list[Step] = []
    departures: list[Departure] = []
    for value, partner in list(partners.items()):
        wanted = reference.take(value)
        graph.reach(value)
        own, corrected = graph.get(value, OWN), graph.get(value, CORRECTED)
        assert own is not None
        assert corrected is not None
        if wanted is None or not _same_sizes(wanted, own):
            del partners[value]  # something else of the same name
        else:
            node = value.producer()
            assert node is not None
            wanted_here, wanted = filled(wanted, own), filled(wanted, corrected)
            step = Step(
                value.name or "",
                partner,
                note(node),
                distance(wanted_here, own),
                distance(wanted, corrected),
                not_finite(own),
                not_finite(wanted_here),
            )
            steps.append(step)
            if not step.own_error <= (LIMIT if limit is None else limit):
                nodes = between(candidate, value, set(partners))
                if limit is not None or not step.own_error <= _limit(nodes):
                    departures.append(_departure(reference, graph, step, value, nodes))
            graph.replace(value, CORRECTED, wanted)
        graph.release(value)
        graph.sweep()
    return Walk(tuple(steps), tuple(departures), len(candidate.graph))


def between(model: ir.Model, value: ir.Value, borders: set[ir.Value]) -> list[ir.Node]:
    """The nodes that compute `value` from values in `borders`, inputs and constants, in order."""
    found: set[ir.Node] = set()
    waiting: list[ir.Value] = [value]
    while waiting:
        current = waiting.pop()
        node = current.producer()
        if node is None or node in found or (current in borders and current is not value):
            continue
        found.add(node)
        waiting += used(node)
    return [node for node in model.graph if node in found]


def note(node: ir.Node) -> NodeNote:
    """Name, operator and origin of a node."""
    operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
    name = node.name or node.outputs[0].name or ""
    return NodeNote(name, operator, node.metadata_props.get(MODULE, ""), node.metadata_props.get(SOURCE, ""))


def _departure(
    reference: Reference, graph: Stepwise, step: Step, value: ir.Value, nodes: Sequence[ir.Node]
) -> Departure:
    made = {output for node in nodes for output in node.outputs}
    read = dict.fromkeys(given for node in nodes for given in used(node) if given not in made)
    ranges = [_range(graph, given) for given in read]
    return Departure(
        step,
        tuple(note(node) for node in nodes),
        reference.nodes(value),
        tuple(found for found in ranges if found is not None),
    )


def _range(graph: Stepwise, value: ir.Value) -> Range | None:
    """The range of a value where what is read is right; None when it is no longer there."""
    arrays: Sequence[Any] | None = graph.get(value, CORRECTED)
    if arrays is None and value.const_value is not None:
        arrays = [value.const_value.numpy()]
    return None if arrays is None else range_of(value.name or "", arrays)


def _limit(nodes: Sequence[ir.Node]) -> float:
    """That of the coarsest type which the nodes make or read."""
    values = {value for node in nodes for value in (*node.outputs, *used(node))}
    return max((LIMITS.get(value.dtype, LIMIT) for value in values), default=LIMIT)


def _same_sizes(wanted: Tensor, found: Tensor) -> bool:
    return all(left.size == right.size for left, right in zip(wanted, found, strict=True))
