"""A graph computed piece by piece, as far as someone asks, with no more tensors in memory than are still read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common as passes

from calibration.slices import Array, Slice, used
from model_repo.runtime.errors import BadInput
from pipeline.graph import load_graph
from plugins.pools import drop_pool_outputs

Feeds = Mapping[str, Array]
"""A graph's inputs by name. Pools that the graph writes to are the same arrays in all runs of a sequence."""

Tensor = list[Array]
"""One array a run."""


def comparable_graph(path: Path) -> ir.Model:
    """The graph at `path` as it is compared: the type of every value known where it can be inferred, and pools no
    outputs, so that the attention operator writes to its inputs. Raises BadInput as `load_graph` does."""
    model = load_graph(path)
    if any(value.dtype is None for node in model.graph for value in node.outputs):
        passes.ShapeInferencePass()(model)
    drop_pool_outputs(model)
    return model


class Stepwise:
    """One graph on several runs, in one or several worlds.

    The worlds start from inputs of their own and are computed by the same sessions; `replace` lets a world go
    on with other numbers than the graph gave it. A value stays until every node that `targets` need has read
    it and, for a target, until `release` has been called as often as it stands in `targets`.
    """

    def __init__(
        self, model: ir.Model, worlds: Sequence[Sequence[Feeds]], targets: Collection[ir.Value]
    ) -> None:
        """`worlds`: each the feeds of all runs. Raises BadInput when an input of the graph is not fed."""
        self.model = model
        self._place = {node: place for place, node in enumerate(model.graph)}
        needed: set[ir.Node] = set()
        for target in targets:
            needed.update(self._missing(target, needed, {}))
        self._readers: Counter[ir.Value] = Counter(
            value for node in needed for value in set(used(node)) if not _is_constant(value)
        )
        self._readers.update(targets)
        self._done: set[ir.Node] = set()
        self._runs = len(worlds[0])
        self._worlds = [self._start(runs) for runs in worlds]

    def reach(self, target: ir.Value) -> None:
        """Computes `target` in every world, if it is not there."""
        nodes = sorted(self._missing(target, self._done, self._worlds[0]), key=self._place.__getitem__)
        if not nodes:
            return
        reads = Counter(value for node in nodes for value in set(used(node)))
        made = [value for node in nodes for value in node.outputs if value.name]
        wanted = [value for value in made if self._readers[value] > reads[value]]
        piece = Slice(self.model, nodes, wanted)
        for world in self._worlds:
            results = [
                piece.run({value: world[value][run] for value in piece.inputs}) for run in range(self._runs)
            ]
            for value, arrays in zip(wanted, zip(*results, strict=True), strict=True):
                world[value] = list(arrays)
        self._done.update(nodes)
        self._readers.subtract({value: count for value, count in reads.items() if value in self._readers})

    def advance(self) -> None:
        """Computes everything, node by node, so that no more is in memory than the nodes ahead read."""
        for node in self._place:
            for value in node.outputs[:1]:
                if self._readers[value] > 0:
                    self.reach(value)
                    self.sweep()

    def get(self, value: ir.Value, world: int = 0) -> Tensor | None:
        """The value in a world; None when it has gone or was never computed."""
        return self._worlds[world].get(value)

    def replace(self, value: ir.Value, world: int, arrays: Sequence[Array]) -> None:
        """Lets a world go on with `arrays`, taken in the shape and type that the value has there."""
        old = self._worlds[world][value]
        self._worlds[world][value] = [
            array.reshape(before.shape).astype(before.dtype, copy=False)
            for array, before in zip(arrays, old, strict=True)
        ]

    def release(self, target: ir.Value) -> None:
        """Says that a target has been seen once."""
        self._readers[target] -= 1

    def sweep(self) -> None:
        """Lets go of every value that nobody will read any more."""
        for world in self._worlds:
            for value in [value for value in world if self._readers[value] <= 0]:
                del world[value]

    def _missing(
        self, target: ir.Value, done: Collection[ir.Node], at_hand: Collection[ir.Value]
    ) -> set[ir.Node]:
        """The nodes that must run for `target`."""
        found: set[ir.Node] = set()
        waiting = [target]
        while waiting:
            value = waiting.pop()
            node = None if value in at_hand else value.producer()
            if node is None or node in found or node in done:
                continue
            found.add(node)
            waiting += used(node)
        return found

    def _start(self, runs: Sequence[Feeds]) -> dict[ir.Value, Tensor]:
        world: dict[ir.Value, Tensor] = {}
        for value in self.model.graph.inputs:
            name, default = value.name or "", value.const_value
            if all(name in feeds for feeds in runs):
                world[value] = [feeds[name] for feeds in runs]
            elif default is not None:
                world[value] = [default.numpy() for _ in runs]
            else:
                raise BadInput(
                    f"nothing is given for the graph's input {name!r}; given are {', '.join(runs[0])}"
                )
        return world


def _is_constant(value: ir.Value) -> bool:
    return value.is_initializer() and not value.is_graph_input()
