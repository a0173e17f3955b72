"""Which nodes must stay in float32 for a graph's 16-bit form to be near enough: found by trying.

Everything is tried first. What becomes infinite is named and kept at once. Then groups of nodes (a module of the
torch model each) are measured one at a time in 16 bit, and so many of the most sensitive ones are kept as it takes,
by bisection; groups, then halves of groups, that turn out not to matter are given back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from model_repo.runtime.errors import BadInput
from pipeline.notes import MODULE
from pipeline.parity.distance import distance
from pipeline.parity.stepwise import Feeds, Stepwise, Tensor
from pipeline.parity.walk import GraphReference, walk

from .convert import emulate
from .plan import Overflow, Plan, Precision, plan

TOLERANCE = 1e-2
"""Largest difference of a row of outputs, relative to the rows' size (`pipeline.parity.distance`)."""

MOST_RUNS = 400
"""Runs of the graph after which nothing more is given back."""


@dataclass(frozen=True)
class Search:
    """`kept`: names of the nodes that stay in float32. `error_of_all`: with none kept; `error`: with these.

    `overflows`: constants that do not fit; `infinite`: tensors whose own node gives infinity or NaN in 16 bit.
    """

    precision: Precision
    kept: tuple[str, ...]
    nodes: int  # nodes that could be 16 bit
    error_of_all: float
    error: float
    overflows: tuple[Overflow, ...]
    infinite: tuple[str, ...]
    runs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "precision": self.precision,
            "kept": list(self.kept),
            "nodes": self.nodes,
            "error_of_all": self.error_of_all if math.isfinite(self.error_of_all) else "not finite",
            "error": self.error,
            "overflows": [found._asdict() for found in self.overflows],
            "infinite": list(self.infinite),
            "runs": self.runs,
        }


def search(
    model: ir.Model,
    precision: Precision,
    feeds: Callable[[], Sequence[Feeds]],
    tolerance: float = TOLERANCE,
) -> Search:
    """The nodes of `model` to keep. `feeds()` gives the inputs of all runs, with pools of their own at each call.

    Raises BadInput when the graph has a node without a name, or two of one name, or nothing to convert.
    """
    names = [node.name or "" for node in model.graph]
    if "" in names or len(set(names)) < len(names):
        raise BadInput("nodes of the graph have no names, or the same; name them, so that some can be kept")
    tried = _Trials(model, precision, feeds)
    narrow = [node.name or "" for node in model.graph if node in plan(model, precision).inputs]
    if not narrow:
        raise BadInput(f"no node of the graph can compute in {precision}: it is no float32 graph")
    of_all = tried.error(())
    infinite = tried.infinite() if not of_all <= tolerance else ()
    kept = _kept(tried, narrow, [node for _, node in infinite], of_all, tolerance)
    return Search(
        precision,
        tuple(name for name in narrow if name in kept),
        len(narrow),
        of_all,
        tried.error(kept),
        plan(model, precision).overflows,
        tuple(tensor for tensor, _ in infinite),
        tried.runs,
    )


class _Trials:
    """Errors of the graph with some nodes kept, each computed once."""

    def __init__(self, model: ir.Model, precision: Precision, feeds: Callable[[], Sequence[Feeds]]) -> None:
        self._model, self._precision, self._feeds = model, precision, feeds
        self._wanted = _outputs(model, feeds())
        self._known: dict[frozenset[str], float] = {}
        self.runs = 0

    def error(self, kept: Collection[str]) -> float:
        """The largest distance of any output."""
        key = frozenset(kept)
        if key not in self._known:
            self.runs += 1
            found = _outputs(self._emulated(kept)[0], self._feeds())
            self._known[key] = max(
                distance(wanted, got) for wanted, got in zip(self._wanted, found, strict=True)
            )
        return self._known[key]

    def infinite(self) -> tuple[tuple[str, str], ...]:
        """Tensors that are not finite although what their node reads is, and their nodes."""
        emulated, _ = self._emulated(())
        found = walk(GraphReference(self._model, self._feeds()), emulated, self._feeds, limit=math.inf)
        names = {value.name: node.name or "" for node in self._model.graph for value in node.outputs}
        return tuple(
            (step.tensor, names[step.partner])
            for step in found.steps
            # A mask's number beyond all others becomes the largest of the type, which is infinitely far and right.
            if not math.isfinite(step.own_error)
            and step.not_finite > step.not_finite_before
            and step.partner in names
        )

    def groups(self, narrow: Sequence[str]) -> list[list[str]]:
        """Nodes of one module of the torch model together, in order; a node without one by itself."""
        by_module: dict[str, list[str]] = {}
        for node in self._model.graph:
            if node.name in narrow:
                module = node.metadata_props.get(MODULE, "")
                by_module.setdefault(module or f"node {node.name}", []).append(node.name or "")
        return list(by_module.values())

    def _emulated(self, kept: Collection[str]) -> tuple[ir.Model, Plan]:
        copy = self._model.clone()
        made = plan(copy, self._precision, kept)
        emulate(copy, made)
        return copy, made


def _kept(
    tried: _Trials, narrow: Sequence[str], infinite: Sequence[str], of_all: float, tolerance: float
) -> set[str]:
    """A set of nodes whose keeping brings the error within the tolerance, none of which is known to be needless."""
    if of_all <= tolerance:
        return set()
    always = set(infinite)
    if tried.error(always) <= tolerance:
        return _given_back(tried, always, [[name] for name in sorted(always)], tolerance)
    groups = [group for group in tried.groups(narrow) if not always.issuperset(group)]
    everything = set(narrow)
    sensitivity = {id(group): tried.error(everything - set(group)) for group in groups}
    groups.sort(key=lambda group: -sensitivity[id(group)])
    low, high = 0, len(groups)
    while low < high:  # keeping all of them is no conversion, and exact
        middle = (low + high) // 2
        if tried.error(always.union(*groups[:middle])) <= tolerance:
            high = middle
        else:
            low = middle + 1
    chosen = groups[:low]
    kept = always.union(*chosen)
    return _given_back(tried, kept, [*reversed(chosen), list(infinite)], tolerance)


def _given_back(
    tried: _Trials, kept: set[str], pieces: Sequence[Sequence[str]], tolerance: float
) -> set[str]:
    """`kept` without what does not matter: each piece is tried whole, then its halves."""
    waiting = list(reversed(pieces))
    while waiting and tried.runs < MOST_RUNS:
        piece = waiting.pop()
        fewer = kept.difference(piece)
        if fewer != kept and tried.error(fewer) <= tolerance:
            kept = fewer
        elif len(piece) > 1:
            waiting += [piece[len(piece) // 2 :], piece[: len(piece) // 2]]
    return kept


def _outputs(model: ir.Model, feeds: Sequence[Feeds]) -> list[Tensor]:
    outputs = [value for value in model.graph.outputs if value.producer() is not None]
    graph = Stepwise(model, [feeds], outputs)
    found = []
    for value in outputs:
        graph.reach(value)
        arrays = graph.get(value)
        assert arrays is not None
        found.append(arrays)
    return found
