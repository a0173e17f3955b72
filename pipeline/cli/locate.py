"""`slipway locate`: where an engine departs from its graph."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("locate")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--per-build",
    type=click.IntRange(min=1),
    help="tensors that become outputs in one build; a builder does not fuse over them  [default: all]",
)
@click.option(
    "--limit", type=click.FloatRange(min=0), help="error from which a node departs  [default: by its type]"
)
@click.option("--picture", type=click.Path(path_type=Path), help="write the error by depth to this .svg")
@click.option("--report", type=click.Path(path_type=Path), help="write all figures to this .json")
def command(
    folder: Path, per_build: int | None, limit: float | None, picture: Path | None, report: Path | None
) -> None:
    """Hold the engine in DIR, of target tensorrt or tensorrt-rtx, against its graph, tensor by tensor.

    The engine is built again with the tensors between its nodes as outputs and run on the GPU that is here; each
    node is judged on what the engine itself gave it. Exit code 3 when one departs.
    """
    from model_repo.runtime.errors import GateFailed
    from pipeline.locate import locate
    from pipeline.parity.picture import write_picture
    from pipeline.parity.report import explain, to_dict

    from .screen import working

    with working(f"running {folder}"):
        found = locate(folder, per_build, limit)
    if report is not None:
        report.write_text(json.dumps(to_dict(found), indent=2) + "\n", encoding="utf-8")
    if picture is not None:
        write_picture(picture, found, f"{folder}: the engine beside its graph")
    lines = explain(found, "the engine", "its graph")
    if found.departures:
        error = GateFailed(f"the engine in {folder} departs from its graph")
        for line in lines:
            error.add_note(line)
        raise error
    print("\n".join(lines))
