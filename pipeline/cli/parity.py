"""`slipway parity`: two artifacts of one model beside each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.side_by_side import SideBySide


@click.command("parity")
@click.argument("first", metavar="A", type=click.Path(path_type=Path))
@click.argument("second", metavar="B", type=click.Path(path_type=Path))
@click.option(
    "--stage",
    "stages",
    multiple=True,
    help="of a build: export, fuse, lower or compile; given twice, A's and then B's  [default: two builds are "
    "compared stage by stage, a build and a file at compile]",
)
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    help=".npz with one array for each input, by name  [default: the build's parity inputs; invented for files]",
)
@click.option("--min-cosine", type=float, help="least cosine of any row of outputs  [default: 0.99999]")
@click.option("--min-top1", type=float, help="least share of rows with the same largest logit  [default: 1]")
@click.option("--max-relative", type=float, help="largest relative difference of a row  [default: 1e-3]")
@click.option(
    "--limit", type=click.FloatRange(min=0), help="error from which a node departs  [default: by its type]"
)
@click.option("--picture", type=click.Path(path_type=Path), help="write the error by depth to this .svg")
@click.option("--report", type=click.Path(path_type=Path), help="write all figures to this .json")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object instead of tables")
def command(
    first: Path,
    second: Path,
    stages: tuple[str, ...],
    inputs: Path | None,
    min_cosine: float | None,
    min_top1: float | None,
    max_relative: float | None,
    limit: float | None,
    picture: Path | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Run A and B, each an .onnx file or a build's folder, on the same inputs and compare B with A.

    Outputs decide whether B is inside the tolerance (exit code 3 when it is not); the tensors between show where it
    departs: the first node whose result is wrong although what it reads is right.
    """
    from model_repo.runtime.errors import GateFailed
    from pipeline.parity.picture import write_picture
    from pipeline.parity.report import explain
    from pipeline.recipe import Tolerance
    from pipeline.side_by_side import artifact, side_by_side

    from .screen import show, working

    given = {"min_cosine": min_cosine, "min_top1": min_top1, "max_relative": max_relative}
    tolerance = Tolerance(**{name: value for name, value in given.items() if value is not None})
    with working(f"comparing {second} with {first}"):
        result = side_by_side(
            artifact(first), artifact(second), stages=stages, inputs=inputs, tolerance=tolerance, limit=limit
        )
    plain = json.dumps(result.to_dict(), indent=2)
    if report is not None:
        report.write_text(plain + "\n", encoding="utf-8")
    if picture is not None:
        write_picture(picture, result.walk, f"{second} beside {first}")
    if as_json:
        print(plain)
    else:
        show(_figures(result), _tensors(result))
    if not result:
        error = GateFailed(f"{second} differs from {first} beyond the tolerance")
        for line in explain(result.walk, result.stage or str(second), str(first)):
            error.add_note(line)
        raise error


def _figures(result: SideBySide) -> Table:
    """One line for each output of each pair of graphs."""
    from rich.table import Table

    from .screen import add_row

    table = Table("stage", "output", title=f"{result.second} beside {result.first}", title_justify="left")
    for name in ("rows", "least cosine", "largest difference", "relative", "top-1"):
        table.add_column(name, justify="right")
    table.add_column("tolerance")
    for pair in result.outputs:
        for name, figures in pair.figures.items():
            add_row(
                table,
                pair.stage,
                name,
                str(figures["rows"]),
                f"{figures['min_cosine']:.8f}",
                _short(figures["max_abs_difference"]),
                _short(figures.get("max_relative_difference", "")),
                f"{figures['top1']:.2%}" if "top1" in figures else "",
                "inside" if pair.inside else "outside",
            )
    return table


def _tensors(result: SideBySide) -> Table:
    """The tensors with the largest errors of their own."""
    from rich.table import Table

    from .screen import add_row

    steps = result.walk.steps
    title = f"{len(steps)} tensors compared in {result.walk.nodes} nodes; the largest errors"
    table = Table("depth", "tensor", "node", title=title, title_justify="left")
    table.add_column("by itself", justify="right")
    table.add_column("in all", justify="right")
    largest = sorted(enumerate(steps), key=lambda pair: -pair[1].own_error)[:10]
    for place, step in sorted(largest):
        node = f"{step.node.operator} {step.node.name}"
        add_row(table, str(place), step.tensor, node, _short(step.own_error), _short(step.error))
    return table


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.2g}"
