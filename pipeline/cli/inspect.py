"""`slipway inspect`: tables of a build or of one graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.inspect import GraphReport
    from pipeline.plan_report import PlanReport


@click.command("inspect")
@click.argument("path", metavar="DIR|FILE.onnx|FILE.plan", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="print one JSON object instead of tables")
@click.option("--fusion", is_flag=True, help="measure each fusion rule of a build on this CPU instead")
def command(path: Path, as_json: bool, fusion: bool) -> None:
    """Show nodes by operator, inputs, outputs, bytes and parity of a build, or of one ONNX file or plan.

    With --fusion: nodes and time that each fusion rule saves, and what it left alone and why.
    """
    if fusion:
        _show_fusion(path, as_json)
        return
    from pipeline.inspect import inspect_folder, inspect_graph
    from pipeline.plan_report import SUFFIXES, inspect_plan

    from .screen import show, stage_table

    plan = None
    if path.is_dir():
        report = inspect_folder(path)
        graphs, tables = report.graphs, [stage_table(report.stages)]
        plain, plan = report.to_dict(), report.plan
    elif path.suffix in SUFFIXES:
        plan = inspect_plan(path)
        graphs, tables, plain = {}, [], plan.to_dict()
    else:
        graph = inspect_graph(path)
        graphs, tables = {path.name: graph}, []
        plain = graph.to_dict()
    if as_json:
        print(json.dumps(plain, indent=2))
        return
    if graphs:
        tables.append(_operators(graphs))
    show(*tables, *(_plan(plan) if plan is not None else [_tensors(graphs)]))


def _plan(plan: PlanReport) -> list[Table]:
    """What is known of a plan, and what was made of it when it was built."""
    from rich.table import Table

    from pipeline.disk import in_words
    from pipeline.targets.tensorrt.table import made_table, options_table, shapes_table

    from .screen import add_row

    chips = f"for compute capability {', '.join(plan.chips)}" if plan.chips else ""
    table = Table(
        "engine", "format", "bytes", "layers", caption="; ".join(filter(None, (chips, *plan.problems)))
    )
    known = "as the builder reported them; deserializing the engine takes a GPU's driver"
    missing = "not known: no record of its build lies beside it, and deserializing it takes a GPU's driver"
    found = missing if plan.record is None else known
    add_row(table, Path(plan.path).name, f"{plan.title} {plan.version}", in_words(plan.bytes), found)
    if plan.record is None:
        return [table]
    return [table, made_table(plan.record), shapes_table(plan.record), options_table(plan.record)]


def _show_fusion(folder: Path, as_json: bool) -> None:
    """The table of `inspect --fusion`."""
    from rich.table import Table

    from pipeline.fusion_report import inspect_fusion

    from .screen import add_row, show, working

    with working(f"building and timing {folder} without each fusion rule"):
        report = inspect_fusion(folder)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    rules = Table(
        "rule",
        title=f"{report.nodes_before} nodes exported, {report.nodes_after} fused, {report.engine_nodes} in the engine",
        caption="engine without: its nodes when only this rule is left out; time: with all rules over without "
        f"this one, median of {report.rounds} alternations",
    )
    for column in ("matched", "nodes before", "after", "engine without", "time"):
        rules.add_column(column, justify="right")
    missed = Table(
        "rule", "times", "left alone because", "for example", title="What looked alike and was not fused"
    )
    for row in report.rules:
        add_row(
            rules,
            row.rule,
            str(row.matched),
            str(row.nodes_before),
            str(row.nodes_after),
            "" if row.engine_nodes_without is None else str(row.engine_nodes_without),
            "" if row.time_ratio is None else f"{row.time_ratio:.2f}",
        )
        for reason, times in row.near_misses.items():
            add_row(missed, row.rule, str(times), reason, row.near_miss_nodes[reason])
    show(rules, *([missed] if missed.row_count else []))


def _operators(graphs: Mapping[str, GraphReport]) -> Table:
    """Nodes by operator, one column a graph."""
    from rich.table import Table

    from pipeline.disk import in_words

    from .screen import add_row

    table = Table("operator")
    for name in graphs:
        table.add_column(name, justify="right")
    for operator in sorted({operator for graph in graphs.values() for operator in graph.operators}):
        add_row(table, operator, *(str(graph.operators.get(operator, "")) for graph in graphs.values()))
    table.add_section()
    add_row(table, "nodes", *(str(graph.nodes) for graph in graphs.values()))
    add_row(table, "weights", *(str(graph.weights) for graph in graphs.values()))
    add_row(table, "bytes of weights", *(in_words(graph.weight_bytes) for graph in graphs.values()))
    add_row(table, "bytes of graph", *(in_words(graph.graph_bytes) for graph in graphs.values()))
    return table


def _tensors(graphs: Mapping[str, GraphReport]) -> Table:
    """Inputs and outputs of the last graph."""
    from rich.table import Table

    from .screen import add_row

    name, graph = list(graphs.items())[-1]
    table = Table(f"{name}", "name", "type", "shape")
    for kind, rows in (("input", graph.inputs), ("output", graph.outputs)):
        for row in rows:
            add_row(table, kind, row.name, row.dtype, f"[{', '.join(map(str, row.shape))}]")
        table.add_section()
    return table
