"""`parity`: two artifacts of one model on the same inputs, output by output, tensor by tensor, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model_repo.runtime.errors import BadInput, GateFailed

from .graph import load_graph
from .parity.compare import compare, gate
from .parity.feeds import Feeds, graph_feeds
from .parity.invented import invented_feeds
from .parity.pairs import borrow_notes
from .parity.report import to_dict
from .parity.stepwise import Stepwise, Tensor, comparable_graph
from .parity.tensors import compare_tensors
from .parity.walk import GraphReference, Walk, walk
from .recipe import Recipe, Tolerance
from .steps.context import BuildContext
from .steps.locating import graphs
from .workspace import ENGINE, RECIPE, Workspace

if TYPE_CHECKING:
    import onnx_ir as ir

LAST = "compile"
"""The stage whose graph stands for a build when none is named."""


@dataclass(frozen=True)
class Artifact:
    """What a user named: an ONNX file, or a build. `context` is there when the file belongs to a build."""

    shown: str
    path: Path
    context: BuildContext | None

    def graph(self, stage: str | None = None) -> Path:
        """The file, or the build's graph of a stage. Raises BadInput when there is none."""
        if self.context is None or self.path.is_file():
            return self.path
        names = graphs(self.context.recipe)
        name = stage or LAST
        if name not in names:
            raise BadInput(f"there is no graph of a stage {name!r}; stages with graphs: {', '.join(names)}")
        self.context.required(name)
        return self.context.workspace.path(names[name])

    @property
    def is_build(self) -> bool:
        """Whether it is a folder with the graphs of several stages."""
        return self.path.is_dir()


@dataclass(frozen=True)
class Outputs:
    """How far the outputs of one pair of graphs are from each other; `stage` '' for files."""

    stage: str
    figures: dict[str, dict[str, Any]]  # by output
    inside: bool


@dataclass(frozen=True)
class SideBySide:
    """`outputs`: of each pair of graphs that was run. `walk`: through the pair at which they part first, or the last
    one. True when all is inside the tolerance."""

    first: str
    second: str
    outputs: tuple[Outputs, ...]
    stage: str
    walk: Walk

    def __bool__(self) -> bool:
        return all(pair.inside for pair in self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "first": self.first,
            "second": self.second,
            "inside": bool(self),
            "stages": [
                {"stage": pair.stage, "inside": pair.inside, "outputs": pair.figures} for pair in self.outputs
            ],
            "walked": self.stage,
            "walk": to_dict(self.walk),
        }


def artifact(path: Path) -> Artifact:
    """What lies at `path`: a build's folder, a graph within one, or any ONNX file. Raises BadInput."""
    if not path.exists():
        raise BadInput(f"there is no {path}; give a .onnx file, or a folder that `slipway build` wrote")
    folder = path if path.is_dir() else path.parent
    if not (folder / RECIPE).is_file():
        if path.is_dir():
            raise BadInput(
                f"{path} holds no build; give a folder that `slipway build` wrote, or a .onnx file"
            )
        return Artifact(str(path), path, None)
    context = BuildContext(Recipe.load(folder / RECIPE), Workspace(folder), exports=False)
    known = path.is_dir() or path.name in graphs(context.recipe).values()
    return Artifact(str(path), path, context if known else None)


def side_by_side(
    first: Artifact,
    second: Artifact,
    *,
    stages: Sequence[str] = (),
    inputs: Path | None = None,
    tolerance: Tolerance | None = None,
    limit: float | None = None,
) -> SideBySide:
    """Runs both on the same inputs: the parity inputs of their build, those in `inputs`, or invented ones.

    `stages`: the stage of both builds, or of the first and of the second. Two builds without it are compared
    stage by stage up to the first one outside the tolerance. `limit`: see `walk`. Raises BadInput: not a graph,
    missing weights, other inputs or outputs, inputs that do not fit.
    """
    allowed = tolerance or Tolerance()
    pairs = _pairs(first, second, stages)
    done: list[Outputs] = []
    for stage, left, right in pairs:
        pair = _Pair(first, second, left, right, inputs)
        figures = pair.figures()
        inside = all(_inside(values, allowed) for values in figures.values())
        done.append(Outputs(stage, figures, inside))
        if not inside or stage == pairs[-1][0]:
            break
    return SideBySide(first.shown, second.shown, tuple(done), stage, pair.walk(limit))


def feeds_of(context: BuildContext | None, model: ir.Model, inputs: Path | None) -> Callable[[], list[Feeds]]:
    """Makes what every run of a graph takes, with pools of its own at each call: what lies in the .npz `inputs`, the
    parity inputs of the build, or, without either, invented ones. Raises BadInput when they do not fit."""
    if inputs is None and context is not None:
        facts, known = context.facts, context.parity_inputs()
        if facts.has_two_graphs:
            kind = "an encoder-decoder" if facts.encoder else "a vision-language model"
            raise BadInput(
                f"{facts.name} is {kind}, and the inputs of its build are for both graphs together; give "
                "--inputs FILE.npz for one of them"
            )
        return lambda: graph_feeds(facts.kind, facts.kv, known)
    feeds = invented_feeds(model) if inputs is None else _given(inputs, model)
    return lambda: [{name: np.array(array) for name, array in feeds.items()}]


def _pairs(first: Artifact, second: Artifact, stages: Sequence[str]) -> list[tuple[str, Path, Path]]:
    """Stage ('' for files) and the two graphs, in the order in which they are compared."""
    if len(stages) > 2:
        raise BadInput(f"--stage is given {len(stages)} times; once for both, or once for each")
    if stages and not (first.is_build or second.is_build):
        raise BadInput("--stage picks a graph of a build's folder; both artifacts are files")
    if stages or not (first.is_build and second.is_build):
        before, after = (stages[0], stages[-1]) if stages else (None, None)
        stage = after or (LAST if second.is_build else "")
        return [(stage, first.graph(before), second.graph(after))]
    assert first.context is not None
    assert second.context is not None
    common = [
        stage
        for stage in graphs(first.context.recipe)
        if all(context.workspace.manifest(stage) for context in (first.context, second.context))
    ]
    if not common:
        raise BadInput(f"{first.shown} and {second.shown} hold no graph of the same stage; build both")
    return [(stage, first.graph(stage), second.graph(stage)) for stage in common]


class _Pair:
    """Two graphs and their inputs."""

    def __init__(
        self, first: Artifact, second: Artifact, left: Path, right: Path, inputs: Path | None
    ) -> None:
        self._names = (str(left), str(right))
        self._left, self._right = _loaded(first, left), _loaded(second, right)
        _check_ends(self._left, self._right, self._names)
        context = first.context or second.context
        self._decoder = context is not None and context.facts.kind == "decoder"
        self._feeds = feeds_of(context, self._left, inputs)

    def figures(self) -> dict[str, dict[str, Any]]:
        """How far each output is from its partner."""
        wanted, found = self._outputs(self._left), self._outputs(self._right)
        figures = {}
        for (name, before), after in zip(wanted.items(), found.values(), strict=True):
            try:
                if name == "logits" and self._decoder:
                    figures[name] = compare(before, after, self._names[0], top1=True)
                else:
                    figures[name] = compare_tensors(_plain(before), _plain(after), self._names[0])
            except ValueError as error:
                raise BadInput(
                    f"output {name!r}: {error}; compare artifacts that give the same tensors"
                ) from error
        return figures

    def walk(self, limit: float | None) -> Walk:
        """Through the second graph beside the first."""
        return walk(GraphReference(self._left, self._feeds()), self._right, self._feeds, limit)

    def _outputs(self, model: ir.Model) -> dict[str, Tensor]:
        outputs = [value for value in model.graph.outputs if value.producer() is not None]
        graph = Stepwise(model, [self._feeds()], outputs)
        graph.advance()
        found = {}
        for value in outputs:
            graph.reach(value)
            arrays = graph.get(value)
            assert arrays is not None
            found[value.name or ""] = arrays
            graph.release(value)
            graph.sweep()
        return found


def _loaded(owner: Artifact, path: Path) -> ir.Model:
    """The graph, ready to be compared; an engine's with the notes of the graph that it was compiled from."""
    model = comparable_graph(path)
    if owner.context is not None and path.name == ENGINE:
        names = graphs(owner.context.recipe)
        borrow_notes(model, load_graph(owner.context.workspace.path(names["lower"])))
    return model


def _plain(arrays: Tensor) -> Tensor:
    """Numbers with a fraction as float32: two precisions are compared by what they hold."""
    return [array.astype(np.float32) if array.dtype.kind == "f" else array for array in arrays]


def _inside(figures: dict[str, Any], tolerance: Tolerance) -> bool:
    try:
        gate("", figures, tolerance)
    except GateFailed:
        return False
    return True


def _check_ends(left: ir.Model, right: ir.Model, names: tuple[str, str]) -> None:
    """Raises BadInput unless both graphs take the same inputs and give as many outputs."""
    one, other = _signature(left), _signature(right)
    for name in dict.fromkeys([*one, *other]):
        if one.get(name) != other.get(name):
            raise BadInput(
                f"{names[0]} and {names[1]} have different inputs: {name} is {one.get(name, 'no input')} in the "
                f"first and {other.get(name, 'no input')} in the second; compare artifacts of one model"
            )
    ends = [[value.name for value in model.graph.outputs] for model in (left, right)]
    if len(ends[0]) != len(ends[1]):
        raise BadInput(
            f"{names[0]} gives {', '.join(map(str, ends[0]))} and {names[1]} {', '.join(map(str, ends[1]))}; "
            "compare artifacts that give the same outputs"
        )


def _signature(model: ir.Model) -> dict[str, str]:
    """Inputs that must be given, each with its type and shape; sizes known only at run time are '?'."""
    found = {}
    for value in model.graph.inputs:
        if value.const_value is None:
            sizes = ", ".join(str(size) if isinstance(size, int) else "?" for size in value.shape or ())
            kind = "unknown" if value.dtype is None else value.dtype.name.lower()
            found[value.name or ""] = f"{kind} [{sizes}]"
    return found


def _given(path: Path, model: ir.Model) -> Feeds:
    """The arrays in an .npz by input name. Raises BadInput when one is missing."""
    try:
        with np.load(path) as arrays:
            feeds = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is not a readable .npz of arrays ({error})") from error
    missing = [name for name in _signature(model) if name not in feeds]
    if missing:
        raise BadInput(
            f"{path} holds {', '.join(feeds) or 'nothing'}, and lacks the graph's input {missing[0]!r}; save one "
            "array for each input, under its name"
        )
    return feeds
