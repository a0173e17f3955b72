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


@click.command("inspect")
@click.argument("path", metavar="DIR|FILE.onnx", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="print one JSON object instead of tables")
def command(path: Path, as_json: bool) -> None:
    """Show nodes by operator, inputs, outputs, bytes and parity of a build, or of one ONNX file."""
    from pipeline.inspect import inspect_folder, inspect_graph

    from .screen import show, stage_table

    if path.is_dir():
        report = inspect_folder(path)
        graphs, tables = report.graphs, [stage_table(report.stages)]
        plain = report.to_dict()
    else:
        graph = inspect_graph(path)
        graphs, tables = {path.name: graph}, []
        plain = graph.to_dict()
    if as_json:
        print(json.dumps(plain, indent=2))
        return
    show(*tables, _operators(graphs), _tensors(graphs))


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
