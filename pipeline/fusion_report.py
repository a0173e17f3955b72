"""`inspect --fusion`: what each fusion rule did to a build's graph, and what that is worth on this CPU.

A rule's worth is measured against the same graph fused without it: nodes of the compiled engine, and the time
of the parity inputs with both engines in alternation, as the median of the ratios of neighbouring runs.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_repo.runtime.errors import BadInput

from .workspace import EXPORTED, RECIPE, STAGING, Workspace

if TYPE_CHECKING:
    import onnxruntime as ort

    from .fuse import FusionReport, RuleReport
    from .recipe import FuseRecipe
    from .steps.context import BuildContext

ROUNDS = 5
"""Runs of each of two engines, in alternation, after one that warms both up."""


@dataclass(frozen=True)
class RuleRow:
    """One rule. `engine_nodes_without` and `time_ratio` are None where the rule changed nothing.

    `nodes_before` and `nodes_after`: of the graph while the rules run one after another. `engine_nodes_without`:
    of the engine compiled without the rule. `time_ratio`: time with all rules over time without this one, so
    less than 1 means that the rule saves time.
    """

    rule: str
    matched: int
    nodes_before: int
    nodes_after: int
    engine_nodes_without: int | None
    time_ratio: float | None
    near_misses: Mapping[str, int]  # how often each reason was given
    near_miss_nodes: Mapping[str, str]  # one node's name for each reason


@dataclass(frozen=True)
class FusionTable:
    """All rules of one build. `engine_nodes`: nodes of the engine with all rules."""

    nodes_before: int
    nodes_after: int
    engine_nodes: int
    rounds: int
    rules: Sequence[RuleRow]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Engine:
    """A compiled variant of the graph."""

    session: ort.InferenceSession
    nodes: int
    report: FusionReport


def inspect_fusion(folder: Path, rounds: int = ROUNDS) -> FusionTable:
    """Fuses and compiles the export in `folder` once a rule that matches, and measures each against the whole.

    Takes as many times the weights on disk as rules change them, until it ends; the build is not changed.
    Raises BadInput when `folder` holds no export, or `rounds` is less than 1.
    """
    from .recipe import Recipe
    from .steps.context import BuildContext
    from .targets import check_on_cpu

    if rounds < 1:
        raise BadInput(f"{rounds} rounds cannot be measured; give 1 or more")
    if not (folder / RECIPE).is_file():
        raise BadInput(f"{folder} holds no build; give a folder that `slipway build` wrote")
    context = BuildContext(Recipe.load(folder / RECIPE), Workspace(folder), exports=False)
    context.required("export")
    check_on_cpu(context.recipe.target.name, "measuring fusion rules")
    fusion = context.recipe.fuse
    with tempfile.TemporaryDirectory(dir=folder, prefix=STAGING) as scratch:
        whole = _engine(context, fusion, Path(scratch) / "whole")
        rows = []
        for report in whole.report.rules:
            if not report:
                rows.append(_row(report, None, None))
                continue
            without = replace(fusion, disable=(*fusion.disable, report.rule))
            other = _engine(context, without, Path(scratch) / report.rule)
            rows.append(_row(report, other.nodes, _time_ratio(context, whole, other, rounds)))
    return FusionTable(whole.report.nodes_before, whole.report.nodes_after, whole.nodes, rounds, rows)


def _row(report: RuleReport, nodes: int | None, ratio: float | None) -> RuleRow:
    reasons = Counter(miss.reason for miss in report.near_misses)
    nodes_by_reason = {miss.reason: miss.node for miss in reversed(report.near_misses)}
    return RuleRow(
        report.rule,
        report.matched,
        report.nodes_before,
        report.nodes_after,
        nodes,
        ratio,
        dict(reasons.most_common()),
        nodes_by_reason,
    )


def _engine(context: BuildContext, fusion: FuseRecipe, folder: Path) -> _Engine:
    """The export, fused by `fusion`, lowered and compiled in `folder`, as a session."""
    from .fuse import fuse
    from .graph import load_graph, save_graph
    from .parity.sessions import engine_session
    from .targets import get_target

    folder.mkdir()
    facts = context.facts
    model = load_graph(context.workspace.path(EXPORTED))
    report = fuse(model, fusion, max_length=facts.max_length if facts.kind == "decoder" else None)
    target = get_target(context.recipe.target.name)
    target.lower(model, facts.kind)
    lowered = save_graph(model, folder / "lower.onnx").graph
    engine = folder / "engine.onnx"
    target.compile(lowered, engine, context.recipe.target)
    session = engine_session(engine)
    return _Engine(session, sum(len(graph) for graph in load_graph(engine).graphs()), report)


def _time_ratio(context: BuildContext, whole: _Engine, other: _Engine, rounds: int) -> float:
    """Time of `whole` over that of `other`: the median over rounds, in which each goes first in turn."""
    from .steps.comparing import run

    inputs, facts = context.parity_inputs(), context.facts

    def seconds(engine: _Engine) -> float:
        begin = time.perf_counter()
        run(engine.session, facts, inputs, context.workspace.path(EXPORTED))
        return time.perf_counter() - begin

    for engine in (whole, other):
        seconds(engine)
    ratios = []
    for turn in range(rounds):
        first, second = (whole, other) if turn % 2 else (other, whole)
        times = {id(first): seconds(first), id(second): seconds(second)}
        ratios.append(times[id(whole)] / times[id(other)])
    return statistics.median(ratios)
